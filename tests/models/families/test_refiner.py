"""Ensembles of experts: a base model and its refiner, against diffusers' two pipelines in a row."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentwire_server.engine.settings import Batching
from tests.support.models.folders import edit, load_model, model_size, read_spec, refused, source_of
from tests.support.models.images import centred_mask, coloured_blobs
from tests.support.models.oracle import (
    STABLE_DIFFUSION_XL,
    TOLERANCE,
    Case,
    EngineImages,
    Oracle,
    build_sensitive_folder,
    largest_difference,
)
from tests.support.models.oracles_in_phases import EnsembleOracle
from tests.support.models.tiny_models import WIDTH, build_folder
from tests.support.models.tiny_xl_models import SECOND_WIDTH, build_xl_folder

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.models.architectures.unet_model import UnetModel

pytestmark = pytest.mark.timeout(300)


REFINED = [
    Case(name="euler", num_inference_steps=10, high_noise_frac=0.8, seed=1),
    Case(
        name="three images",
        num_images=3,
        scheduler="euler-a",
        num_inference_steps=6,
        high_noise_frac=0.5,
        negative_prompt="a blue square",
        seed=2,
    ),
    Case(name="heun", scheduler="heun", num_inference_steps=6, high_noise_frac=0.7, seed=3),
    Case(name="multistep", scheduler="dpmpp-2m", num_inference_steps=8, high_noise_frac=0.6),
    Case(name="no guidance", guidance_scale=1.0, scheduler="ddim", high_noise_frac=0.4, seed=4),
    Case(name="never", high_noise_frac=1.0, seed=5),
    Case(
        name="image",
        image=coloured_blobs(1),
        strength=0.7,
        num_images=2,
        num_inference_steps=10,
        high_noise_frac=0.8,
        seed=6,
    ),
    Case(
        name="too late for the base",
        image=coloured_blobs(2),
        strength=0.2,
        num_inference_steps=10,
        high_noise_frac=0.5,
        seed=7,
    ),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base, refiner = (tmp_path_factory.mktemp(name) for name in ("base", "refiner"))
    return build_xl_folder(base), build_xl_folder(refiner, is_refiner=True, seed=5)


@pytest.fixture(scope="module")
def model(folders: tuple[Path, Path]) -> UnetModel:
    base, refiner = folders
    return load_model(source_of(base, refiner=str(refiner), high_noise_frac=0.75))


@pytest.fixture(scope="module")
def oracle(folders: tuple[Path, Path]) -> EnsembleOracle:
    return EnsembleOracle(*folders)


@pytest.fixture(scope="module")
def crowd(model: UnetModel) -> dict[str, list[bytes]]:
    return EngineImages(model=model).crowd(*REFINED)


@pytest.fixture(scope="module")
def reproducible(model: UnetModel) -> tuple[dict[str, list[bytes]], dict[str, list[bytes]]]:
    images = EngineImages(model=model, batching=Batching.REPRODUCIBLE, max_rows=4)
    return images.alone(*REFINED), images.crowd(*REFINED)


@pytest.mark.parametrize("case", REFINED, ids=[case.name for case in REFINED])
def test_an_ensemble_generates_the_images_of_both_pipelines_in_a_row(
    oracle: EnsembleOracle, crowd, reproducible, case: Case
) -> None:
    expected = oracle.generate(case)
    alone, together = reproducible
    assert largest_difference(crowd[case.name], expected) <= TOLERANCE
    assert largest_difference(alone[case.name], expected) <= TOLERANCE
    assert together[case.name] == alone[case.name]


def test_the_refiner_makes_a_difference(oracle: EnsembleOracle) -> None:
    case = REFINED[0]
    refined, plain = (
        oracle.generate(case),
        oracle.generate(replace(case, name="", high_noise_frac=1.0)),
    )
    assert abs(refined[0] - plain[0]).max() > 4 * TOLERANCE


ALIKE = [
    Case(
        name="masked",
        image=coloured_blobs(3),
        mask=centred_mask(),
        num_images=2,
        scheduler="euler-a",
    ),
    Case(
        name="half masked",
        image=coloured_blobs(4),
        mask=centred_mask(),
        strength=0.5,
        num_inference_steps=8,
    ),
    Case(name="from noise", scheduler="ddim", num_inference_steps=7),
]


def test_a_model_that_refines_itself_generates_the_same_images(folders) -> None:
    """With masks too, for which diffusers has no pipeline: both phases keep the unmasked pixels."""
    base, _ = folders
    model = load_model(source_of(base, refiner=str(base)))
    cases = [replace(case, high_noise_frac=0.6) for case in ALIKE]
    oracle = Oracle(base, pipelines=STABLE_DIFFUSION_XL)
    generated = EngineImages(model=model).crowd(*cases)
    for case in ALIKE:
        assert largest_difference(generated[case.name], oracle.generate(case)) <= TOLERANCE, (
            case.name
        )


def test_the_models_info_includes_the_refiner(model: UnetModel) -> None:
    assert "refiner" in model.info.capabilities
    assert model.info.defaults.high_noise_frac == 0.75
    assert model.refiner is not None
    assert model.refiner.info.id == "tiny/refiner"
    assert model.info.revision.endswith("+" + model.refiner.info.revision)


def test_a_spec_includes_the_refiner_and_its_weights_count(folders, model: UnetModel) -> None:
    base, refiner = folders
    source = source_of(base, refiner=str(refiner), high_noise_frac=0.75)
    spec = read_spec(source)
    assert spec is not None
    assert spec.info == model.info
    assert spec.refiner is not None
    assert model_size(source).weights_bytes == bytes_in(base) + bytes_in(refiner, but="vae")


def bytes_in(folder: Path, *, but: str = "none") -> int:
    """Returns the size of the tensors of all parts of a folder but one."""
    files = [path for path in folder.glob("*/*.safetensors") if path.parent.name != but]
    return sum(tensor.nbytes for path in files for tensor in load_file(path).values())


WORD, PROMPT = "<style>", "a red <style> circle"


@pytest.fixture(scope="module")
def sharing(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A refiner with its base's second text encoder, as the published one has."""
    base, refiner = folders
    copy = tmp_path_factory.mktemp("sharing") / "refiner"
    shutil.copytree(refiner, copy)
    for part in ("text_encoder_2", "tokenizer_2"):
        shutil.rmtree(copy / part)
        shutil.copytree(base / part, copy / part)
    edit(copy / "text_encoder_2/config.json", lambda config: config.update(_name_or_path="x"))
    return copy


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("words"), torch.Generator().manual_seed(0)
    sizes = {"clip_l": WIDTH, "clip_g": SECOND_WIDTH}
    vectors = {name: torch.randn((2, size), generator=generator) for name, size in sizes.items()}
    save_file(vectors, folder / f"{WORD}.safetensors")
    return folder


def test_a_shared_text_encoder_is_loaded_once(folders, sharing: Path) -> None:
    base, _ = folders
    source = source_of(base, refiner=str(sharing))
    model = load_model(source)
    assert model.refiner is not None
    modules = [one._parts.text_encoders[-1].module for one in (model, model.refiner)]
    assert modules[0] is modules[1]
    held = {
        id(one): one for part in (model, model.refiner) for one in part._parts.networks.values()
    }
    total = sum(tensor.nbytes for part in held.values() for tensor in part.parameters())
    assert model_size(source).weights_bytes == pytest.approx(total, rel=0.001)
    case = Case(name="shared", high_noise_frac=0.5)
    (files,) = EngineImages(model=model).alone(case).values()
    assert largest_difference(files, EnsembleOracle(base, sharing).generate(case)) <= TOLERANCE


def test_text_encoders_that_differ_in_one_weight_are_not_shared(
    folders, sharing: Path, tmp_path: Path
) -> None:
    base, _ = folders
    copy = shutil.copytree(sharing, tmp_path / "refiner")
    path = copy / "text_encoder_2/model.safetensors"
    tensors = load_file(path)
    tensors["text_projection.weight"][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    model = load_model(source_of(base, refiner=str(copy)))
    assert model.refiner is not None
    modules = [one._parts.text_encoders[-1].module for one in (model, model.refiner)]
    assert modules[0] is not modules[1]
    assert (
        model_size(source_of(base, refiner=str(copy))).weights_bytes
        > model_size(source_of(base, refiner=str(sharing))).weights_bytes
    )


def test_a_refiners_own_autoencoder_is_not_read(folders, tmp_path: Path) -> None:
    base, refiner = folders
    copy = shutil.copytree(refiner, tmp_path / "refiner")
    path = next((copy / "vae").glob("*.safetensors"))
    save_file({"nothing": torch.zeros(1)}, path, metadata={"format": "pt"})
    model = load_model(source_of(base, refiner=str(copy)))
    assert model.refiner is not None
    assert model.refiner._parts.vae is model._parts.vae


@pytest.mark.parametrize("shares", [True, False])
def test_the_refiner_learns_the_words_of_its_base(
    folders, sharing: Path, words: Path, shares: bool
) -> None:
    base, refiner = folders
    folder = sharing if shares else refiner
    model = load_model(source_of(base, refiner=str(folder), embeddings_folder=words))
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(
        folder, local_files_only=True, add_watermarker=False
    )
    pipeline.load_textual_inversion(
        {WORD: load_file(next(words.iterdir()))["clip_g"]},
        token=WORD,
        text_encoder=pipeline.text_encoder_2,
        tokenizer=pipeline.tokenizer_2,
    )
    expected, _, pooled, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    assert model.refiner is not None
    encoded = model.refiner.encode_prompt(PROMPT, clip_skip=0)
    assert torch.allclose(encoded.prompt_embeds, expected[0], atol=1e-5)
    assert torch.allclose(encoded.pooled_prompt_embeds, pooled[0], atol=1e-5)


def test_a_refiner_of_another_family_is_refused(folders, tmp_path: Path) -> None:
    base, _ = folders
    build_folder(tmp_path)
    refused(base, refiner=str(tmp_path), because="its refiner is of the family stable-diffusion")


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_a_model_may_use_another_autoencoder(tmp_path: Path, kind: str) -> None:
    folder = build_sensitive_folder(tmp_path / "model")
    other = build_sensitive_folder(tmp_path / "other", vae=kind, seed=9) / "vae"
    case, oracle = Case(name="one"), Oracle(folder)
    oracle.pipeline.vae = getattr(diffusers, kind).from_pretrained(other)
    for vae in (other, other.parent):
        model = load_model(source_of(folder, vae=str(vae)))
        (files,) = EngineImages(model=model).alone(case).values()
        assert largest_difference(files, oracle.generate(case)) <= TOLERANCE


def test_a_vae_that_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    folder = build_folder(tmp_path)
    refused(folder, vae=str(folder / "unet"), because="no autoencoder; supported: AutoencoderKL")
