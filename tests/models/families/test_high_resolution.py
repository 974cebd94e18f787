"""Images in two passes, against diffusers' pipelines with the latents enlarged in between."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from latentwire_server.engine.request import HighResolutionFix
from tests.support.models.folders import load_model, source_of
from tests.support.models.oracle import (
    STABLE_DIFFUSION_XL,
    TOLERANCE,
    Case,
    EngineImages,
    Oracle,
    build_sensitive_folder,
    largest_difference,
)
from tests.support.models.oracles_in_phases import LARGE, generate_in_two_passes
from tests.support.models.tiny_xl_models import build_xl_folder

if TYPE_CHECKING:
    from pathlib import Path

CASES = [
    Case(name="euler", seed=1, **LARGE),
    Case(name="two images", num_images=2, scheduler="euler-a", guidance_scale=1.0, **LARGE),
    Case(name="multistep", scheduler="dpmpp-2m", seed=2, **LARGE),
    Case(
        name="not square",
        scheduler="ddim",
        **{**LARGE, "high_resolution_fix": HighResolutionFix(width=72, height=56, strength=0.7)},
    ),
]
OTHERS = [Case(name="small"), Case(name="large at once", **{**LARGE, "high_resolution_fix": None})]


def test_a_large_image_matches_the_pipelines_in_two_passes(tmp_path: Path) -> None:
    folder = build_sensitive_folder(tmp_path)
    model, oracle = load_model(source_of(folder)), Oracle(folder)
    assert model.info.defaults.high_resolution_fix == 0.6
    images = EngineImages(model=model)
    crowd = images.crowd(*CASES, *OTHERS)
    alone = images.alone(*CASES[:2])
    for case in CASES:
        expected = generate_in_two_passes(oracle, case)
        assert largest_difference(crowd[case.name], expected) <= TOLERANCE, case.name
        if case.name in alone:
            assert largest_difference(alone[case.name], expected) <= TOLERANCE, case.name
    for case in OTHERS:
        assert largest_difference(crowd[case.name], oracle.generate(case)) <= TOLERANCE, case.name
    at_once = [one.astype(int) for one in oracle.generate(OTHERS[1])]
    assert largest_difference(crowd["euler"], at_once) > 4 * TOLERANCE


def test_a_refiner_takes_part_only_in_the_second_pass(tmp_path: Path) -> None:
    folder = build_xl_folder(tmp_path)
    # It refines itself, which changes nothing with a sampler without memory.
    model = load_model(source_of(folder, refiner=str(folder)))
    assert model.refiner is not None
    case = replace(CASES[0], scheduler="ddim", high_noise_frac=0.8)
    (files,) = EngineImages(model=model).alone(case).values()
    oracle = Oracle(folder, pipelines=STABLE_DIFFUSION_XL)
    assert largest_difference(files, generate_in_two_passes(oracle, case)) <= TOLERANCE
