"""bfloat16: the pipeline's images, alone and in a crowd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from latentwire_server.models.model_options import EMBEDDED_FOLDER, ModelEntry
from tests.support.engine.driving import pixels_of_file
from tests.support.models.folders import load_model
from tests.support.models.oracle import Case, EngineImages, Oracle

LEAST_PSNR = 40.0
CASES = [
    Case(name="ddim", scheduler="ddim"),
    Case(name="dpmpp-2m", scheduler="dpmpp-2m", prompt="a green star", seed=3),
    Case(name="euler-a", scheduler="euler-a", prompt="a ring", seed=4),
]


def psnr(data: bytes, expected: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in dB, of 255."""
    error = np.square(pixels_of_file(data).astype(float) - expected).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("num_inference_steps", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_bfloat16_generates_the_pipelines_images_alone_and_in_a_crowd(
    num_inference_steps: int,
) -> None:
    oracle = Oracle(EMBEDDED_FOLDER, dtype=torch.bfloat16)
    oracle.compute_in_channels_last()
    source = ModelEntry(id="short", source=str(EMBEDDED_FOLDER), device="cpu", dtype="bfloat16")
    images = EngineImages(model=load_model(source))
    side = images.model.info.defaults.width
    cases = [
        replace(
            case,
            width=side,
            height=side,
            guidance_scale=2.8,
            num_inference_steps=num_inference_steps,
        )
        for case in CASES
    ]
    alone, crowd = images.alone(*cases), images.crowd(*cases)
    for case in cases:
        (expected,) = oracle.generate(case)
        for generated in (alone, crowd):
            assert psnr(generated[case.name][0], expected) >= LEAST_PSNR, case
        # Another seed's image must not pass.
        (other,) = oracle.generate(replace(case, name=f"{case.name}, other", seed=99))
        assert psnr(alone[case.name][0], other) < LEAST_PSNR
