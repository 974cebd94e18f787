"""Adapters of generations with several phases: the base model uses them in all its passes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.models.folders import load_model, source_of
from tests.support.models.lora_files import write_diffusers, write_kohya
from tests.support.models.oracle import (
    STABLE_DIFFUSION_XL,
    TOLERANCE,
    Case,
    EngineImages,
    Oracle,
    largest_difference,
)
from tests.support.models.oracles_in_phases import (
    LARGE,
    EnsembleOracle,
    generate_in_two_passes,
)
from tests.support.models.tiny_xl_models import build_xl_folder

if TYPE_CHECKING:
    from pathlib import Path

STYLE, PERSON = "style", "person"
REFINED = [
    Case(name="none", high_noise_frac=0.5, num_inference_steps=6),
    Case(name="style", high_noise_frac=0.5, num_inference_steps=6, loras=((STYLE, 1.0),)),
    Case(
        name="both",
        high_noise_frac=0.7,
        num_inference_steps=6,
        num_images=2,
        scheduler="euler-a",
        loras=((STYLE, 0.5), (PERSON, 0.8)),
    ),
]
TWO_PASSES = [
    Case(name="two passes", **LARGE),
    Case(name="two passes with style", loras=((STYLE, 1.0),), **LARGE),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, a refiner and adapters."""
    base, refiner, loras = (tmp_path_factory.mktemp(name) for name in ("base", "refiner", "loras"))
    build_xl_folder(base)
    build_xl_folder(refiner, is_refiner=True, seed=5)
    parts = load_model(source_of(base))._parts
    write_diffusers(loras / f"{STYLE}.safetensors", parts, seed=1)
    write_kohya(loras / f"{PERSON}.safetensors", parts, seed=2)
    return base, refiner, loras


@pytest.fixture(scope="module")
def crowd(folders: tuple[Path, Path, Path]) -> dict[str, list[bytes]]:
    base, refiner, loras = folders
    model = load_model(source_of(base, refiner=str(refiner), lora_folder=loras))
    # At this size the refiner would take part twice; these images are the base's alone.
    passes = [replace(case, high_noise_frac=1.0) for case in TWO_PASSES]
    return EngineImages(model=model).crowd(*REFINED, *passes)


def test_the_refiner_does_not_use_the_bases_adapters(folders, crowd) -> None:
    base, refiner, loras = folders
    oracle = EnsembleOracle(base, refiner)
    oracle.load_loras(loras)
    generated = {case.name: oracle.generate(case) for case in REFINED}
    for case in REFINED:
        assert largest_difference(crowd[case.name], generated[case.name]) <= TOLERANCE, case.name
    assert largest_difference(crowd["style"], generated["none"]) > 4 * TOLERANCE


def test_both_passes_of_a_large_image_use_the_adapters(folders, crowd) -> None:
    base, _, loras = folders
    oracle = Oracle(base, pipelines=STABLE_DIFFUSION_XL)
    oracle.load_loras(loras)
    plain, style = (generate_in_two_passes(oracle, case) for case in TWO_PASSES)
    assert largest_difference(crowd["two passes"], plain) <= TOLERANCE
    assert largest_difference(crowd["two passes with style"], style) <= TOLERANCE
    assert largest_difference(crowd["two passes with style"], plain) > 4 * TOLERANCE
