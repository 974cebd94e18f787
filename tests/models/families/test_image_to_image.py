"""Generations that start from an image, against diffusers' own pipelines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from latentwire_server.models.model_options import ModelEntry
from tests.support.models.folders import load_model
from tests.support.models.images import centred_mask, coloured_blobs
from tests.support.models.oracle import (
    SCHEDULERS,
    SIDE,
    TOLERANCE,
    Case,
    EngineImages,
    Oracle,
    build_sensitive_folder,
    largest_difference,
)

if TYPE_CHECKING:
    from latentwire_server.models.protocol import DiffusionModel

pytestmark = pytest.mark.timeout(300)


FROM_IMAGES = [
    Case(
        name=scheduler,
        scheduler=scheduler,
        num_inference_steps=6,
        strength=1.0 if number % 2 else 0.5,
        guidance_scale=1.0 if number % 4 == 3 else 4.0,
        seed=10 * number,
        num_images=2 if number % 5 == 1 else 1,
        image=coloured_blobs(number),
    )
    for number, scheduler in enumerate(SCHEDULERS)
]
IN_MASKS = [
    replace(
        case,
        name=f"{case.name} masked",
        mask=centred_mask(),
        strength=0.5 if case.strength == 1.0 else 1.0,
    )
    for case in FROM_IMAGES
]
OTHERS = [
    Case(name="from noise", num_inference_steps=6),
    Case(
        name="wide",
        width=2 * SIDE,
        image=coloured_blobs(3, width=2 * SIDE),
        mask=centred_mask(width=2 * SIDE),
        strength=0.7,
        num_inference_steps=10,
    ),
    Case(
        name="few",
        image=coloured_blobs(5),
        strength=0.2,
        num_inference_steps=5,
        scheduler="dpmpp-2m",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_sensitive_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder) -> DiffusionModel:
    return load_model(ModelEntry(id="tiny", source=str(folder), device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def oracle(folder) -> Oracle:
    return Oracle(folder)


@pytest.fixture(scope="module")
def alone(model) -> dict[str, list[bytes]]:
    return EngineImages(model=model).alone(*FROM_IMAGES, *IN_MASKS, *OTHERS)


@pytest.fixture(scope="module")
def crowd(model) -> dict[str, list[bytes]]:
    cases = [*FROM_IMAGES, *IN_MASKS]
    images = EngineImages(model=model)
    first = images.crowd(*cases[::2], *OTHERS)
    return first | images.crowd(*cases[1::2])


@pytest.mark.parametrize("case", [*FROM_IMAGES, *IN_MASKS, *OTHERS], ids=lambda case: case.name)
def test_alone_it_generates_the_pipelines_images(oracle: Oracle, alone, case: Case) -> None:
    assert largest_difference(alone[case.name], oracle.generate(case)) <= TOLERANCE


@pytest.mark.parametrize("case", [*FROM_IMAGES, *IN_MASKS, *OTHERS], ids=lambda case: case.name)
def test_in_a_crowd_it_generates_the_pipelines_images(oracle: Oracle, crowd, case: Case) -> None:
    assert largest_difference(crowd[case.name], oracle.generate(case)) <= TOLERANCE


def test_an_autoencoder_without_a_latent_distribution_works_too(tmp_path) -> None:
    folder = build_sensitive_folder(tmp_path, vae="AutoencoderTiny")
    model = load_model(ModelEntry(id="tiny", source=str(folder), device="cpu", dtype="float32"))
    oracle, cases = Oracle(folder), [FROM_IMAGES[4], IN_MASKS[4], IN_MASKS[9], *OTHERS]
    for name, files in EngineImages(model=model).crowd(*cases).items():
        (case,) = [case for case in cases if case.name == name]
        assert largest_difference(files, oracle.generate(case)) <= TOLERANCE, name
