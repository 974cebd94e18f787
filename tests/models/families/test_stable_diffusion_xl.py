"""Stable Diffusion XL, alone or in a crowd, against diffusers' own pipelines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import diffusers
import pytest
import torch

from latentwire_server.engine.settings import Batching
from latentwire_server.models.families import stable_diffusion_xl
from latentwire_server.models.families.stable_diffusion_xl import StableDiffusionXL
from latentwire_server.models.loading import model_files
from tests.support.models.folders import edit, load_model, refused, source_of
from tests.support.models.images import centred_mask, coloured_blobs
from tests.support.models.oracle import (
    SIDE,
    STABLE_DIFFUSION_XL,
    TOLERANCE,
    Case,
    EngineImages,
    Oracle,
    largest_difference,
)
from tests.support.models.tiny_xl_models import build_xl_folder

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.models.denoiser.unet_call import UnetInput
    from latentwire_server.models.protocol import DenoiserInput

pytestmark = pytest.mark.timeout(300)


FROM_NOISE = [
    Case(name="euler", seed=1),
    Case(name="negative prompt", negative_prompt="a blue square", scheduler="ddim", seed=2),
    Case(name="no guidance", guidance_scale=1.0, scheduler="dpmpp-2m", seed=3),
    Case(name="three images", num_images=3, scheduler="euler-a", seed=4),
    Case(name="wide", width=2 * SIDE, scheduler="heun", num_inference_steps=3, seed=5),
    Case(name="clip skip", clip_skip=1, scheduler="unipc", seed=6, prompt="a green square"),
    Case(name="karras", scheduler="dpmpp-2m-sde", sigmas="karras", num_images=2, seed=7),
]
FROM_IMAGES = [
    Case(name="image", image=coloured_blobs(1), scheduler="dpmpp-2m", num_images=2, seed=8),
    Case(
        name="half", image=coloured_blobs(2), strength=0.5, num_inference_steps=6, scheduler="heun"
    ),
    Case(
        name="mask",
        image=coloured_blobs(3),
        mask=centred_mask(),
        strength=1.0,
        num_images=2,
        seed=9,
    ),
    Case(
        name="half mask",
        image=coloured_blobs(4),
        mask=centred_mask(),
        strength=0.5,
        num_inference_steps=6,
    ),
]
CASES = [*FROM_NOISE, *FROM_IMAGES]


def names_of(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # In shards, as the published UNet is.
    return build_xl_folder(tmp_path_factory.mktemp("xl"), max_shard_size="200KB")


@pytest.fixture(scope="module")
def model(folder: Path) -> StableDiffusionXL:
    return load_model(source_of(folder))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder, pipelines=STABLE_DIFFUSION_XL)


@pytest.fixture(scope="module")
def crowd(model: StableDiffusionXL) -> dict[str, list[bytes]]:
    return EngineImages(model=model).crowd(*CASES)


@pytest.fixture(scope="module")
def reproducible(model: StableDiffusionXL) -> tuple[dict[str, list[bytes]], dict[str, list[bytes]]]:
    images = EngineImages(model=model, batching=Batching.REPRODUCIBLE, max_rows=4)
    return images.alone(*CASES), images.crowd(*CASES)


@pytest.mark.parametrize("case", CASES, ids=names_of(CASES))
def test_in_a_crowd_it_generates_the_pipelines_images(oracle: Oracle, crowd, case: Case) -> None:
    assert largest_difference(crowd[case.name], oracle.generate(case)) <= TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=names_of(CASES))
def test_reproducible_images_match_the_pipeline_and_are_the_same_bytes(
    oracle: Oracle, reproducible, case: Case
) -> None:
    alone, crowd = reproducible
    assert largest_difference(alone[case.name], oracle.generate(case)) <= TOLERANCE
    assert crowd[case.name] == alone[case.name]


def test_alone_it_generates_the_pipelines_images(oracle: Oracle, model: StableDiffusionXL) -> None:
    cases = [FROM_NOISE[0], FROM_NOISE[3], FROM_IMAGES[0], FROM_IMAGES[2]]
    for name, files in EngineImages(model=model).alone(*cases).items():
        (case,) = [case for case in cases if case.name == name]
        assert largest_difference(files, oracle.generate(case)) <= TOLERANCE, name


def test_without_forced_zeros_the_empty_prompt_is_encoded(tmp_path: Path) -> None:
    folder = build_xl_folder(tmp_path, force_zeros=False)
    case = FROM_NOISE[0]
    (files,) = EngineImages(model=load_model(source_of(folder))).alone(case).values()
    oracle = Oracle(folder, pipelines=STABLE_DIFFUSION_XL)
    assert largest_difference(files, oracle.generate(case)) <= TOLERANCE


def with_wrong_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stable_diffusion_xl, "_time_ids", lambda *_, score: [512.0] * 6)


def with_neighbours_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = StableDiffusionXL._input

    def rolled(self: StableDiffusionXL, rows: DenoiserInput) -> UnetInput:
        shifted = [*rows.conditioning[1:], rows.conditioning[0]]
        swapped = [
            replace(own, pooled_prompt_embeds=other.pooled_prompt_embeds)
            for own, other in zip(rows.conditioning, shifted, strict=True)
        ]
        return inputs(self, replace(rows, conditioning=swapped))

    monkeypatch.setattr(StableDiffusionXL, "_input", rolled)


@pytest.mark.parametrize("break_model", [with_wrong_size, with_neighbours_summary])
def test_wrong_conditioning_is_caught(
    oracle: Oracle, model: StableDiffusionXL, monkeypatch: pytest.MonkeyPatch, break_model
) -> None:
    break_model(monkeypatch)
    cases = FROM_NOISE[:2]
    for name, files in EngineImages(model=model).crowd(*cases).items():
        (case,) = [case for case in cases if case.name == name]
        assert largest_difference(files, oracle.generate(case)) > TOLERANCE, name


def test_the_model_describes_itself(model: StableDiffusionXL) -> None:
    info = model.info
    assert (info.family, info.defaults.guidance_scale) == ("stable-diffusion-xl", 5.0)
    assert info.limits.max_clip_skip == 2
    assert info.limits.min_drawn_pixels == SIDE * SIDE // 2
    assert info.capabilities == ("image-to-image", "inpainting")


def test_previews_use_the_familys_own_factors(model: StableDiffusionXL) -> None:
    preview = model.project_preview(torch.zeros(1, 4, 2, 3))
    expected = torch.tensor([0.1084, -0.0175, -0.0011]) / 2 + 0.5
    assert torch.allclose(preview[:, 0, 0], expected)


def test_the_fp16_variant_is_loaded(tmp_path: Path) -> None:
    build_xl_folder(tmp_path, variant="fp16", max_shard_size="200KB")
    refused(tmp_path, because="of the variant fp16 only; set variant")
    model = load_model(source_of(tmp_path, variant="fp16"))
    assert model.encode_prompt("a red circle", clip_skip=0).prompt_embeds.shape == (77, 80)


def test_an_autoencoder_that_overflows_in_float16_computes_in_float32(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Patched, because float16 is refused on a CPU as too slow.
    monkeypatch.setattr(model_files, "choose_dtype", lambda *_: torch.float16)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.half)
    with torch.inference_mode():
        rounded = vae.decode(latents.half() / vae.config.scaling_factor)[0][0].float()
        exact = vae.float().decode(latents / vae.config.scaling_factor)[0][0]
    decoded = load_model(source_of(folder)).decode(latents)
    assert torch.allclose(decoded, exact / 2 + 0.5, atol=1e-5)
    assert not torch.allclose(decoded, rounded / 2 + 0.5, atol=1e-5)


def test_bfloat16_models_encode_images_in_float32_like_the_pipeline(folder: Path) -> None:
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(
        folder, torch_dtype=torch.bfloat16, add_watermarker=False
    )
    assert pipeline.vae.config.force_upcast
    image = 2 * torch.rand((1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(1)) - 1

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    with torch.inference_mode():
        expected = pipeline.prepare_latents(
            image, None, 1, 1, torch.bfloat16, "cpu", generator(), add_noise=False
        )
        # Encoding in bfloat16 gives other values almost everywhere.
        rounded = pipeline.vae.encode(image.bfloat16()).latent_dist.sample(generator())
    model = load_model(source_of(folder, dtype="bfloat16"))
    decoded = model.decode(expected.float())
    encoded = model.encode_image(image).sample(generator())
    assert (encoded == expected.float()).float().mean() > 0.95
    scaled = rounded * pipeline.vae.config.scaling_factor
    assert (encoded == scaled.float()).float().mean() < 0.6
    # Its weights are unchanged.
    assert torch.equal(model.decode(expected.float()), decoded)
    assert model._parts.vae.encoder.conv_in.weight.dtype is torch.bfloat16


def test_a_model_with_mismatched_added_conditions_is_refused(tmp_path: Path) -> None:
    build_xl_folder(tmp_path)

    def asks_for_scores(index: dict[str, object]) -> None:
        index["requires_aesthetics_score"] = True

    edit(tmp_path / "model_index.json", asks_for_scores)
    refused(tmp_path, because="takes 88 numbers besides the prompt")


@pytest.mark.parametrize("backend", ["openvino"])
def test_a_compiled_unet_gets_the_same_conditioning(
    folder: Path, oracle: Oracle, backend: str
) -> None:
    pytest.importorskip("openvino")
    model = load_model(source_of(folder, denoiser_backend=backend))
    model.prepare(2)
    assert "any" in model.compiled_shapes
    cases = [FROM_NOISE[0], FROM_NOISE[4]]
    for name, files in EngineImages(model=model).crowd(*cases).items():
        (case,) = [case for case in cases if case.name == name]
        assert largest_difference(files, oracle.generate(case)) <= TOLERANCE, name
