"""Ensembles of experts: a base model and its refiner, against diffusers' two pipelines in a row."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch

from latentwire_server.engine.types import Batching
from latentwire_server.models.loading import load_model, outline_model, weights_bytes
from tests.models.folders import refused, source_of
from tests.models.oracle import (
    SCHEDULERS,
    STABLE_DIFFUSION_XL,
    Case,
    EngineDrawings,
    Oracle,
    build_sensitive_folder,
    largest_difference,
)
from tests.models.test_sources import mask, picture
from tests.tiny_models import build_folder
from tests.tiny_xl_models import build_xl_folder

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.models.unet_model import UnetModel

# diffusers' schedulers hand tensors to numpy in ways that numpy 2 will drop; not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.timeout(300),
]

TOLERANCE = 2
"""Of 255: what splitting a batch differently changes in float32, and rounding."""

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
        name="picture",
        image=picture(1),
        strength=0.7,
        num_images=2,
        num_inference_steps=10,
        high_noise_frac=0.8,
        seed=6,
    ),
    Case(
        name="too late for the base",
        image=picture(2),
        strength=0.2,
        num_inference_steps=10,
        high_noise_frac=0.5,
        seed=7,
    ),
]


class EnsembleOracle:
    """The base pipeline to ``denoising_end``, then the refiner's from ``denoising_start``."""

    def __init__(self, base: Path, refiner: Path) -> None:
        self._base = Oracle(base, pipelines=STABLE_DIFFUSION_XL)
        shared = self._base.pipeline
        self._refiner = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(
            refiner, local_files_only=True, vae=shared.vae, add_watermarker=False
        )
        self._refiner.set_progress_bar_config(disable=True)
        self._config = dict(self._refiner.scheduler.config)

    def draw(self, case: Case) -> list[np.ndarray]:
        share = case.high_noise_frac
        if share == 1.0:
            return self._base.draw(case)
        generators = [
            torch.Generator("cpu").manual_seed(case.seed + index)
            for index in range(case.num_images)
        ]
        common = {"generator": generators, "num_images_per_prompt": case.num_images}
        arguments = case.arguments | case.source_arguments
        pipeline = self._base.pipeline_with_scheduler(case)
        is_refined_alone = case.image is not None and 1 - case.strength >= share
        if is_refined_alone:
            latents = case.source_arguments["image"]
            start = {"strength": case.strength}
        else:
            latents = pipeline(
                **arguments, **common, denoising_end=share, output_type="latent"
            ).images
            start = {"denoising_start": share}
        class_name, options = SCHEDULERS[case.scheduler]
        kind: Any = getattr(diffusers, class_name)
        self._refiner.scheduler = kind.from_config(self._config, **options)
        for name in ("image", "strength", "width", "height"):
            arguments.pop(name, None)
        images = self._refiner(image=latents, **arguments, **start, **common).images
        return [np.asarray(image).astype(np.int16) for image in images]


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
    return EngineDrawings(model=model).crowd(*REFINED)


@pytest.fixture(scope="module")
def reproducible(model: UnetModel) -> tuple[dict[str, list[bytes]], dict[str, list[bytes]]]:
    drawings = EngineDrawings(model=model, batching=Batching.REPRODUCIBLE, max_rows=4)
    return drawings.alone(*REFINED), drawings.crowd(*REFINED)


@pytest.mark.parametrize("case", REFINED, ids=[case.name for case in REFINED])
def test_an_ensemble_draws_what_both_pipelines_draw_in_a_row(
    oracle: EnsembleOracle, crowd, reproducible, case: Case
) -> None:
    expected = oracle.draw(case)
    alone, together = reproducible
    assert largest_difference(crowd[case.name], expected) <= TOLERANCE
    assert largest_difference(alone[case.name], expected) <= TOLERANCE
    assert together[case.name] == alone[case.name]


def test_the_refiner_makes_a_difference(oracle: EnsembleOracle) -> None:
    case = REFINED[0]
    refined, plain = oracle.draw(case), oracle.draw(replace(case, name="", high_noise_frac=1.0))
    assert abs(refined[0] - plain[0]).max() > 4 * TOLERANCE


ALIKE = [
    Case(name="masked", image=picture(3), mask=mask(), num_images=2, scheduler="euler-a"),
    Case(name="half masked", image=picture(4), mask=mask(), strength=0.5, num_inference_steps=8),
    Case(name="from noise", scheduler="ddim", num_inference_steps=7),
]


def test_a_model_that_refines_itself_draws_what_it_draws_alone(folders) -> None:
    """In masks too, for which diffusers has no pipeline: what is kept goes through both phases."""
    base, _ = folders
    model = load_model(source_of(base, refiner=str(base)))
    cases = [replace(case, high_noise_frac=0.6) for case in ALIKE]
    oracle = Oracle(base, pipelines=STABLE_DIFFUSION_XL)
    drawn = EngineDrawings(model=model).crowd(*cases)
    for case in ALIKE:
        assert largest_difference(drawn[case.name], oracle.draw(case)) <= TOLERANCE, case.name


def test_it_says_that_it_has_a_refiner(model: UnetModel) -> None:
    assert "refiner" in model.info.capabilities
    assert model.info.defaults.high_noise_frac == 0.75
    assert model.refiner is not None
    assert model.refiner.info.id == "tiny/refiner"
    assert model.info.revision.endswith("+" + model.refiner.info.revision)


def test_an_outline_knows_the_refiner_and_its_weights_count(folders, model: UnetModel) -> None:
    base, refiner = folders
    source = source_of(base, refiner=str(refiner), high_noise_frac=0.75)
    outline = outline_model(source)
    assert outline is not None
    assert outline.info == model.info
    assert outline.refiner is not None
    both = weights_bytes(source_of(base)) + weights_bytes(source_of(refiner))
    assert weights_bytes(source) == both


def test_a_refiner_of_another_family_is_refused(folders, tmp_path: Path) -> None:
    base, _ = folders
    build_folder(tmp_path)
    refused(base, refiner=str(tmp_path), because="its refiner is of the family stable-diffusion")


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_an_autoencoder_may_come_from_elsewhere(tmp_path: Path, kind: str) -> None:
    folder = build_sensitive_folder(tmp_path / "model")
    other = build_sensitive_folder(tmp_path / "other", vae=kind, seed=9) / "vae"
    case, oracle = Case(name="one"), Oracle(folder)
    oracle.pipeline.vae = getattr(diffusers, kind).from_pretrained(other)
    for vae in (other, other.parent):
        model = load_model(source_of(folder, vae=str(vae)))
        (files,) = EngineDrawings(model=model).alone(case).values()
        assert largest_difference(files, oracle.draw(case)) <= TOLERANCE


def test_what_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    folder = build_folder(tmp_path)
    refused(folder, vae=str(folder / "unet"), because="no autoencoder; supported: AutoencoderKL")
