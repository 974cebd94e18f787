"""Pictures in two passes, against diffusers' pipelines with the latents enlarged in between."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from latentwire_server.engine.request import HighResolutionFix
from tests.support.models.folders import load_model, source_of
from tests.support.models.oracle import (
    SIDE,
    STABLE_DIFFUSION_XL,
    Case,
    EngineDrawings,
    Oracle,
    build_sensitive_folder,
    largest_difference,
)
from tests.support.models.tiny_xl_models import build_xl_folder

if TYPE_CHECKING:
    from pathlib import Path

# diffusers' schedulers hand tensors to numpy in ways that numpy 2 will drop; not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TOLERANCE = 2
LARGE: dict[str, Any] = {
    "width": 2 * SIDE,
    "height": 2 * SIDE,
    "num_inference_steps": 6,
    "high_resolution_fix": HighResolutionFix(width=SIDE, height=SIDE, strength=0.5),
}
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


def draw(oracle: Oracle, case: Case) -> list[np.ndarray]:
    fix = case.high_resolution_fix
    assert fix is not None
    generators = [
        torch.Generator("cpu").manual_seed(case.seed + index) for index in range(case.num_images)
    ]
    common = {"generator": generators, "num_images_per_prompt": case.num_images}
    first = replace(case, width=fix.width, height=fix.height)
    latents = oracle.pipeline_with_scheduler(first)(
        **first.arguments, **common, output_type="latent"
    ).images
    size = case.height // 8, case.width // 8
    larger = torch.nn.functional.interpolate(latents, size=size, mode="bicubic")
    second = replace(case, image=np.zeros((case.height, case.width, 3), np.uint8))
    images = oracle.pipeline_with_scheduler(second)(
        **second.arguments, **common, image=larger, strength=fix.strength
    ).images
    return [np.asarray(image).astype(np.int16) for image in images]


def test_a_large_picture_is_what_both_passes_make_of_it(tmp_path: Path) -> None:
    folder = build_sensitive_folder(tmp_path)
    model, oracle = load_model(source_of(folder)), Oracle(folder)
    assert model.info.defaults.high_resolution_fix == 0.6
    drawings = EngineDrawings(model=model)
    crowd = drawings.crowd(*CASES, *COMPANY)
    alone = drawings.alone(*CASES[:2])
    for case in CASES:
        expected = draw(oracle, case)
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
    assert largest_difference(files, draw(oracle, case)) <= TOLERANCE
