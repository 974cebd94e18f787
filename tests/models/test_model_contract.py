"""The contract between models and the engine, checked on the fake and on real models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from latentwire_server.models.info import SchedulerChoice
from latentwire_server.models.model_options import ModelEntry
from latentwire_server.models.protocol import DenoiserInput
from tests.support.fakes import FakeModel
from tests.support.models.folders import load_model
from tests.support.models.tiny_models import INPAINTING_CHANNELS, LATENT_CHANNELS, build_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentwire_server.models.protocol import DiffusionModel

SIDE = 64


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """As on the device thread."""
    with torch.inference_mode():
        yield


@pytest.fixture(params=["fake", "tiny", "inpainting", "embedded"], scope="module")
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> DiffusionModel:
    match request.param:
        case "fake":
            return FakeModel()
        case "tiny" | "inpainting":
            is_inpainting = request.param == "inpainting"
            folder = build_folder(
                tmp_path_factory.mktemp("tiny"),
                in_channels=INPAINTING_CHANNELS if is_inpainting else LATENT_CHANNELS,
            )
            source = ModelEntry(id="tiny", source=str(folder), device="cpu", dtype="float32")
            return load_model(source)
        case _:
            return load_model(ModelEntry(source="embedded", device="cpu", dtype="float32"))


def latents_of(model: DiffusionModel, *, rows: int, seed: int = 0) -> torch.Tensor:
    shape = model.latent_shape(width=SIDE, height=SIDE)
    return torch.randn((rows, *shape), generator=torch.Generator("cpu").manual_seed(seed))


def rows_of(model: DiffusionModel, latents: torch.Tensor) -> DenoiserInput:
    prompts = ["a red circle", "a blue square", "", "a green star on a white background"]
    encoded = [model.encode_prompt(prompt, clip_skip=0) for prompt in prompts]
    count = latents.shape[0]
    return DenoiserInput(
        latents=latents,
        timesteps=torch.linspace(999.0, 1.0, count),
        conditioning=[encoded[index % len(encoded)] for index in range(count)],
    )


def test_the_models_info_is_consistent(model: DiffusionModel) -> None:
    info = model.info
    schedulers = {scheduler.id: scheduler for scheduler in info.schedulers}
    defaults = info.defaults
    assert info.id
    assert info.revision
    assert defaults.scheduler.sigmas in schedulers[defaults.scheduler.id].sigmas
    assert all("default" in scheduler.sigmas for scheduler in info.schedulers)
    for side in (defaults.width, defaults.height):
        assert info.limits.min_side <= side <= info.limits.max_side
        assert side % info.limits.side_multiple == 0
    assert defaults.width * defaults.height <= info.limits.max_pixels
    assert 1 <= defaults.num_inference_steps <= info.limits.max_inference_steps


def test_latents_follow_width_and_height(model: DiffusionModel) -> None:
    channels, height, width = model.latent_shape(width=2 * SIDE, height=SIDE)
    assert channels >= 1
    assert width == 2 * height


def test_the_same_prompt_is_always_encoded_to_the_same_bytes(model: DiffusionModel) -> None:
    first = model.encode_prompt("a red circle", clip_skip=0).prompt_embeds
    model.encode_prompt("something else, and longer", clip_skip=0)
    again = model.encode_prompt("a red circle", clip_skip=0).prompt_embeds
    assert first.ndim == 2
    assert torch.equal(first, again)


def test_different_prompts_are_encoded_differently(model: DiffusionModel) -> None:
    red, blue = (
        model.encode_prompt(f"a {colour} circle", clip_skip=0).prompt_embeds
        for colour in ("red", "blue")
    )
    assert red.shape == blue.shape
    assert not torch.equal(red, blue)


def test_a_short_prompt_is_encoded_whole_and_a_long_one_is_truncated(model: DiffusionModel) -> None:
    assert model.dropped_text("a red circle") == ""
    long_prompt = " ".join(["a red circle"] * 100)
    dropped = model.dropped_text(long_prompt)
    assert dropped
    assert long_prompt.endswith(dropped)
    assert len(dropped) < len(long_prompt)


def test_a_prediction_has_the_shape_of_its_rows_in_float32(model: DiffusionModel) -> None:
    rows = rows_of(model, latents_of(model, rows=4))
    prediction = model.denoise(rows)
    assert prediction.shape == rows.latents.shape
    assert prediction.dtype is torch.float32
    assert torch.isfinite(prediction).all()


def test_a_row_depends_neither_on_its_neighbours_nor_on_its_position(model: DiffusionModel) -> None:
    rows = rows_of(model, latents_of(model, rows=4))
    order = [2, 0, 3, 1]
    shuffled = DenoiserInput(
        latents=rows.latents[order],
        timesteps=rows.timesteps[order],
        conditioning=[rows.conditioning[index] for index in order],
    )
    assert torch.equal(model.denoise(rows)[order], model.denoise(shuffled))


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_a_non_finite_row_does_not_affect_other_rows(model: DiffusionModel, value: float) -> None:
    latents = latents_of(model, rows=4)
    clean = model.denoise(rows_of(model, latents))
    poisoned = latents.clone()
    poisoned[1] = value
    prediction = model.denoise(rows_of(model, poisoned))
    others = [0, 2, 3]
    assert torch.equal(prediction[others], clean[others])


def test_denoising_does_not_change_its_input(model: DiffusionModel) -> None:
    rows = rows_of(model, latents_of(model, rows=2))
    latents, timesteps = rows.latents.clone(), rows.timesteps.clone()
    first = model.denoise(rows)
    assert torch.equal(rows.latents, latents)
    assert torch.equal(rows.timesteps, timesteps)
    assert torch.equal(model.denoise(rows), first)


def test_an_image_is_decoded_to_colours_from_0_to_1(model: DiffusionModel) -> None:
    image = model.decode(latents_of(model, rows=1))
    assert image.shape == (3, SIDE, SIDE)
    assert image.dtype is torch.float32
    # Not clamped: a decoder's numbers end a little outside.
    assert 0 <= image.mean() <= 1


def test_nan_stays_visible_in_decoded_images(model: DiffusionModel) -> None:
    latents = latents_of(model, rows=1)
    latents[0, 0, 3, 3] = math.nan
    assert not torch.isfinite(model.decode(latents)).all()


def test_a_preview_has_a_pixel_per_latent(model: DiffusionModel) -> None:
    _, height, width = model.latent_shape(width=SIDE, height=SIDE)
    preview = model.project_preview(latents_of(model, rows=1))
    assert preview.shape == (3, height, width)
    assert preview.min() >= 0
    assert preview.max() <= 1


def test_every_scheduler_listed_takes_noise_to_finite_latents(model: DiffusionModel) -> None:
    unconditional = model.encode_prompt("", clip_skip=0)
    for info in model.info.schedulers:
        for sigmas in {info.sigmas[0], info.sigmas[-1]}:
            choice = SchedulerChoice(id=info.id, sigmas=sigmas)
            scheduler = model.create_scheduler(choice, num_inference_steps=3)
            generators = [torch.Generator("cpu").manual_seed(1)]
            latents = latents_of(model, rows=1) * scheduler.init_noise_sigma
            for position in range(scheduler.num_evaluations):
                scaled = scheduler.scale_model_input(latents, position)
                assert torch.equal(scaled, scheduler.scale_model_input(latents, position))
                noise = model.denoise(
                    DenoiserInput(
                        latents=scaled,
                        timesteps=torch.tensor([scheduler.timestep(position)]),
                        conditioning=[unconditional],
                    )
                )
                original = scheduler.predicted_original(noise, latents, position)
                assert torch.isfinite(original).all(), choice
                latents = scheduler.step(noise, latents, position, generators=generators)
            assert latents.dtype is torch.float32
            assert torch.isfinite(latents).all(), choice


def test_a_scheduler_or_a_spacing_that_is_not_listed_is_refused(model: DiffusionModel) -> None:
    for choice in (SchedulerChoice(id="no-such"), SchedulerChoice(id="euler", sigmas="no-such")):
        with pytest.raises(ValueError, match="no-such"):
            model.create_scheduler(choice, num_inference_steps=4)
