"""Pictures in two passes, against diffusers' pipelines with the latents enlarged in between."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from latentwire_server.engine.request import HighResolutionFix
from tests.support.models.folders import load_model, source_of
from tests.support.models.oracle import (
    STABLE_DIFFUSION_XL,
    TOLERANCE,
    Case,
    EngineDrawings,
    Oracle,
    build_sensitive_folder,
    largest_difference,
)
from tests.support.models.oracles_in_phases import LARGE, draw_in_two_passes
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
COMPANY = [Case(name="small"), Case(name="large at once", **{**LARGE, "high_resolution_fix": None})]


def test_a_large_picture_is_what_both_passes_make_of_it(tmp_path: Path) -> None:
    folder = build_sensitive_folder(tmp_path)
    model, oracle = load_model(source_of(folder)), Oracle(folder)
    assert model.info.defaults.high_resolution_fix == 0.6
    drawings = EngineDrawings(model=model)
    crowd = drawings.crowd(*CASES, *COMPANY)
    alone = drawings.alone(*CASES[:2])
    for case in CASES:
        expected = draw_in_two_passes(oracle, case)
        assert largest_difference(crowd[case.name], expected) <= TOLERANCE, case.name
        if case.name in alone:
            assert largest_difference(alone[case.name], expected) <= TOLERANCE, case.name
    for case in COMPANY:
        assert largest_difference(crowd[case.name], oracle.draw(case)) <= TOLERANCE, case.name
    at_once = [one.astype(int) for one in oracle.draw(COMPANY[1])]
    assert largest_difference(crowd["euler"], at_once) > 4 * TOLERANCE


def test_a_refiner_takes_part_in_the_second_pass_alone(tmp_path: Path) -> None:
    folder = build_xl_folder(tmp_path)
    # It refines itself, so that with a sampler without memory it draws as if it did not.
    model = load_model(source_of(folder, refiner=str(folder)))
    assert model.refiner is not None
    case = replace(CASES[0], scheduler="ddim", high_noise_frac=0.8)
    (files,) = EngineDrawings(model=model).alone(case).values()
    oracle = Oracle(folder, pipelines=STABLE_DIFFUSION_XL)
    assert largest_difference(files, draw_in_two_passes(oracle, case)) <= TOLERANCE
