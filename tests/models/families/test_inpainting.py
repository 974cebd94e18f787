"""Inpainting models, against diffusers' own pipeline.

Their UNet takes a mask and the masked image beside the latents. Without a mask everything is
regenerated, as the pipeline does with a mask that is white all over.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from latentwire_server.engine.device import batch_size_probe as batch_size
from latentwire_server.engine.diffusion.initial_latents import LatentPreparer
from latentwire_server.engine.diffusion.trajectory import Trajectory
from latentwire_server.engine.settings import Batching
from latentwire_server.models.protocol import Conditioning, DenoiserInput
from tests.support.engine.driving import Driver
from tests.support.eventually import eventually
from tests.support.models.folders import load_model, refused, source_of
from tests.support.models.images import coloured_blobs, random_mask
from tests.support.models.oracle import (
    SIDE,
    TOLERANCE,
    Case,
    EngineImages,
    Oracle,
    build_sensitive_folder,
    largest_difference,
    request_of,
)
from tests.support.models.tiny_models import INPAINTING_CHANNELS, build_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latentwire_server.models.protocol import DiffusionModel

pytestmark = pytest.mark.timeout(300)


STRENGTHS = (1.0, 0.7, 0.34)
MASKED = [
    Case(
        name=scheduler,
        scheduler=scheduler,
        num_inference_steps=6,
        strength=STRENGTHS[number % 3],
        guidance_scale=1.0 if number % 4 == 3 else 5.0,
        seed=10 * number,
        num_images=3 if number in {1, 3} else 1,
        image=coloured_blobs(number),
        mask=random_mask(number),
    )
    for number, scheduler in enumerate(
        ["pndm", "euler-a", "ddim", "ddpm", "heun", "dpmpp-2m", "unipc", "lcm", "dpmpp-sde"]
    )
]
OTHERS = [
    Case(
        name="another mask",
        num_inference_steps=6,
        image=coloured_blobs(0),
        mask=random_mask(9),
        strength=1.0,
    ),
    Case(
        name="wide",
        width=2 * SIDE,
        image=coloured_blobs(3, width=2 * SIDE),
        mask=random_mask(3, width=2 * SIDE),
        strength=1.0,
    ),
    Case(
        name="white all over",
        image=coloured_blobs(4),
        mask=np.full((SIDE, SIDE), 255, np.uint8),
        seed=4,
    ),
    Case(name="image to image", image=coloured_blobs(5), strength=0.6, num_images=2),
    Case(name="image to image, whole", image=coloured_blobs(6), strength=1.0, scheduler="ddim"),
    Case(name="text to image", scheduler="euler-a", num_images=2),
    Case(name="text to image without guidance", scheduler="dpmpp-2m", guidance_scale=1.0),
]
CASES = [*MASKED, *OTHERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sensitive_folder(tmp_path_factory.mktemp("tiny"), in_channels=INPAINTING_CHANNELS)


@pytest.fixture(scope="module")
def model(folder: Path) -> DiffusionModel:
    return load_model(source_of(folder, denoiser_backend="eager"))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


@pytest.fixture(scope="module")
def alone(model: DiffusionModel) -> dict[str, list[bytes]]:
    return EngineImages(model=model).alone(*CASES)


@pytest.fixture(scope="module")
def crowd(model: DiffusionModel) -> dict[str, list[bytes]]:
    return EngineImages(model=model).crowd(*CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_alone_it_generates_the_pipelines_images(oracle: Oracle, alone, case: Case) -> None:
    assert largest_difference(alone[case.name], oracle.generate(case)) <= TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_a_crowd_it_generates_the_pipelines_images(oracle: Oracle, crowd, case: Case) -> None:
    assert largest_difference(crowd[case.name], oracle.generate(case)) <= TOLERANCE


def test_reproducible_means_the_same_bytes_under_any_load(model: DiffusionModel) -> None:
    images = EngineImages(model=model, batching=Batching.REPRODUCIBLE, max_rows=4)
    cases = [*MASKED[::2], *OTHERS[2:]]
    assert images.crowd(*cases) == images.alone(*cases)


def without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Trajectory, "_for_each_image", lambda self, text: (text,) * self.request.num_images
    )


def with_the_first_images_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    for_each_image = Trajectory._for_each_image

    def first(self: Trajectory, text: Conditioning) -> tuple[Conditioning, ...]:
        own = for_each_image(self, text)
        return own[:1] * len(own)

    monkeypatch.setattr(Trajectory, "_for_each_image", first)


def with_other_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = LatentPreparer._noise

    def after_another(self: LatentPreparer) -> torch.Tensor:
        for generator in self.generators:
            torch.randn((1, 4, 8, 8), generator=generator)
        return noise(self)

    monkeypatch.setattr(LatentPreparer, "_noise", after_another)


@pytest.mark.parametrize(
    ("break_engine", "case"),
    [
        (without_masks, MASKED[0]),
        (without_masks, MASKED[5]),
        (with_the_first_images_mask, MASKED[1]),
        (with_other_noise, MASKED[0]),
    ],
)
def test_a_broken_engine_is_caught(
    oracle: Oracle,
    model: DiffusionModel,
    monkeypatch: pytest.MonkeyPatch,
    break_engine: Callable[[pytest.MonkeyPatch], None],
    case: Case,
) -> None:
    break_engine(monkeypatch)
    generated = EngineImages(model=model).crowd(case, MASKED[2])
    assert largest_difference(generated[case.name], oracle.generate(case)) > TOLERANCE


async def test_all_kinds_of_requests_share_its_calls(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, may_go = [], threading.Event()
    denoise = model.denoise

    def counted(rows: DenoiserInput) -> torch.Tensor:
        calls.append(len(rows.latents))
        assert may_go.wait(30)
        return denoise(rows)

    monkeypatch.setattr(model, "denoise", counted)
    cases = [
        Case(name="words", num_inference_steps=12),
        Case(name="image", image=coloured_blobs(1), num_inference_steps=10, strength=0.8, seed=1),
        Case(
            name="mask",
            image=coloured_blobs(2),
            mask=random_mask(2),
            num_inference_steps=8,
            strength=1.0,
        ),
        Case(
            name="other",
            image=coloured_blobs(2),
            mask=random_mask(3),
            num_inference_steps=8,
            strength=1.0,
        ),
    ]
    driver = Driver(model, max_rows=16)
    await driver.engine.start()
    try:
        requests = [request_of(case, model) for case in cases]
        first = asyncio.create_task(driver.run(requests[0]))
        await eventually(lambda: calls)
        rest = asyncio.create_task(driver.run_all(*requests[1:]))
        await asyncio.sleep(0)
        may_go.set()
        assert all(result.is_complete for result in [await first, *await rest])
    finally:
        await driver.engine.aclose()
    # One source image is encoded each tick, so they join one by one.
    assert calls == [2, 4, 6, 8, 8, 8, 8, 8, 8, 6, 4, 2]


def test_an_inpainting_model_also_supports_text_and_image_to_image(model: DiffusionModel) -> None:
    assert model.sees_masks
    assert model.info.capabilities == ("image-to-image", "inpainting")
    assert model.latent_shape(width=SIDE, height=SIDE) == (4, 8, 8)


def test_its_batch_size_is_probed_with_all_its_channels(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "MOST_ROWS", 4)
    shapes = []
    prepared = model._unet.__class__.__call__

    def watched(self: object, rows: object) -> torch.Tensor:
        shapes.append(tuple(rows.latents.shape[1:]))
        return prepared(self, rows)

    monkeypatch.setattr(model._unet.__class__, "__call__", watched)
    assert batch_size.probe_batch_size(model, run=lambda work: work()) >= 2
    assert set(shapes) == {(INPAINTING_CHANNELS, 8, 8)}


@pytest.mark.slow
def test_openvino_runs_it_with_all_its_channels(folder: Path, oracle: Oracle) -> None:
    pytest.importorskip("openvino")
    compiled = load_model(source_of(folder, denoiser_backend="openvino"))
    compiled.prepare(4)
    assert compiled.compiled_shapes == ("any", f"4x{INPAINTING_CHANNELS}x8x8")
    cases = [MASKED[0], MASKED[2], *OTHERS]
    for name, files in EngineImages(model=compiled, max_rows=4).crowd(*cases).items():
        (case,) = [case for case in cases if case.name == name]
        assert largest_difference(files, oracle.generate(case)) <= TOLERANCE, name


def test_rows_with_and_without_a_mask_share_a_call(model: DiffusionModel) -> None:
    text = model.encode_prompt("a red circle", clip_skip=0)
    masked = replace(text, mask_latents=torch.randn(5, 8, 8))
    latents = torch.randn(3, 4, 8, 8)

    def denoised(*conditioning: Conditioning) -> torch.Tensor:
        return model.denoise(
            DenoiserInput(
                latents=latents, timesteps=torch.full((3,), 500.0), conditioning=conditioning
            )
        )

    mixed, plain, all_masked = (
        denoised(text, masked, text),
        denoised(text, text, text),
        denoised(masked, masked, masked),
    )
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    assert torch.equal(mixed[1], all_masked[1])
    assert not torch.equal(mixed[1], plain[1])


@pytest.mark.parametrize("in_channels", [5, 8])
def test_a_unet_with_other_input_channels_is_refused(tmp_path: Path, in_channels: int) -> None:
    folder = build_folder(tmp_path, in_channels=in_channels)
    refused(folder, because=rf"takes {in_channels} channels; supported: the latents' 4 or, .* 9")
