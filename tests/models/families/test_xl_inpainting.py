"""Inpainting models of Stable Diffusion XL, against diffusers' own pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from latentwire_server.engine.settings import Batching
from tests.support.models.folders import load_model, refused, source_of
from tests.support.models.images import coloured_blobs, random_mask
from tests.support.models.oracle import (
    SIDE,
    STABLE_DIFFUSION_XL,
    TOLERANCE,
    Case,
    EngineImages,
    Oracle,
    largest_difference,
)
from tests.support.models.tiny_models import INPAINTING_CHANNELS
from tests.support.models.tiny_xl_models import build_xl_folder

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.models.protocol import DiffusionModel

CASES = [
    Case(name="mask", image=coloured_blobs(1), mask=random_mask(1), strength=1.0, seed=1),
    Case(
        name="half",
        image=coloured_blobs(2),
        mask=random_mask(2),
        strength=0.5,
        scheduler="ddim",
        seed=2,
    ),
    Case(
        name="three",
        image=coloured_blobs(3),
        mask=random_mask(3),
        num_images=3,
        scheduler="euler-a",
        seed=3,
    ),
    Case(
        name="no guidance", image=coloured_blobs(4), mask=random_mask(4), guidance_scale=1.0, seed=4
    ),
    Case(
        name="wide",
        width=2 * SIDE,
        image=coloured_blobs(5, width=2 * SIDE),
        mask=random_mask(5, width=2 * SIDE),
        negative_prompt="a blue square",
    ),
    Case(name="white", image=coloured_blobs(6), mask=np.full((SIDE, SIDE), 255, np.uint8), seed=6),
    Case(name="image", image=coloured_blobs(7), strength=0.6, num_images=2, scheduler="dpmpp-2m"),
    Case(name="words", scheduler="heun", num_inference_steps=3),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_xl_folder(tmp_path_factory.mktemp("xl"), in_channels=INPAINTING_CHANNELS)


@pytest.fixture(scope="module")
def model(folder: Path) -> DiffusionModel:
    return load_model(source_of(folder, denoiser_backend="eager"))


@pytest.fixture(scope="module")
def crowd(model: DiffusionModel) -> dict[str, list[bytes]]:
    return EngineImages(model=model).crowd(*CASES)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder, pipelines=STABLE_DIFFUSION_XL)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_a_crowd_it_generates_the_pipelines_images(oracle: Oracle, crowd, case: Case) -> None:
    assert largest_difference(crowd[case.name], oracle.generate(case)) <= TOLERANCE


def test_reproducible_images_are_the_same_bytes_alone_and_in_a_crowd(
    model: DiffusionModel, oracle: Oracle
) -> None:
    images = EngineImages(model=model, batching=Batching.REPRODUCIBLE, max_rows=4)
    cases = [CASES[0], CASES[1], CASES[7]]
    alone = images.alone(*cases)
    assert images.crowd(*cases) == alone
    for case in cases:
        assert largest_difference(alone[case.name], oracle.generate(case)) <= TOLERANCE, case.name


def test_another_mask_makes_another_image(crowd, oracle: Oracle) -> None:
    other = Case(name="other", image=coloured_blobs(1), mask=random_mask(9), strength=1.0, seed=1)
    assert largest_difference(crowd["mask"], oracle.generate(other)) > 4 * TOLERANCE


def test_the_model_describes_itself(model: DiffusionModel) -> None:
    assert model.sees_masks
    assert model.info.family == "stable-diffusion-xl"
    assert model.info.defaults.high_resolution_fix is None
    assert model.latent_shape(width=SIDE, height=SIDE) == (4, 8, 8)


def test_an_inpainting_model_takes_no_refiner(folder: Path) -> None:
    refused(folder, refiner=str(folder), because="made for inpainting takes no refiner")
