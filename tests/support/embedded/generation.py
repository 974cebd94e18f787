"""Generates images with the embedded model, through diffusers alone, and scores them.

The service is left out on purpose: this measures the weights.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

from tests.support.embedded.image_check import Expectation, ExpectedObject, problems

MODEL: Final = Path("server/latentwire_server/embedded/model")
HELD_OUT: Final = Path(__file__).with_name("held_out.json")
DEFAULTS: Final = json.loads((MODEL / "latentwire.json").read_text())["defaults"]
GUIDANCE_SCALE: Final[float] = DEFAULTS["guidance_scale"]
NUM_INFERENCE_STEPS: Final = 20
_ROWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A prompt with its seed, and the expected content of the image."""

    prompt: str
    seed: int
    expected: Expectation


def held_out_pairs() -> list[Pair]:
    """Reads the committed pairs, none of which was in training."""
    return [
        Pair(
            prompt=record["prompt"],
            seed=record["seed"],
            expected=Expectation(
                objects=tuple(ExpectedObject(**item) for item in record["objects"]),
                background=record["background"],
                place=record["place"],
                axis=record["axis"],
            ),
        )
        for record in json.loads(HELD_OUT.read_text())
    ]


def load_pipeline(folder: Path = MODEL, *, scheduler: str = "own") -> StableDiffusionPipeline:
    """Loads the folder in float32, with its own scheduler or with dpmpp-2m."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.to(torch.float32)
    if scheduler == "dpmpp-2m":
        config = pipeline.scheduler.config
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: StableDiffusionPipeline,
    pairs: Sequence[Pair],
    *,
    side: int = 256,
    guidance_scale: float = GUIDANCE_SCALE,
) -> Iterator[Image.Image]:
    """Yields one image per pair, generated in small batches, each with its own seed."""
    rows = _ROWS if side <= 256 else 2
    for start in range(0, len(pairs), rows):
        batch = pairs[start : start + rows]
        yield from pipeline(
            [pair.prompt for pair in batch],
            width=side,
            height=side,
            num_inference_steps=NUM_INFERENCE_STEPS,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(pair.seed) for pair in batch],
        ).images


def score(images: Sequence[Image.Image], expected: Sequence[Expectation]) -> float:
    """Returns the share of images that show what their prompts ask for."""
    good = sum(not problems(*row) for row in zip(images, expected, strict=True))
    return good / len(images)


def shuffled(pairs: Sequence[Pair]) -> list[Expectation]:
    """Returns the expectations, shifted by a third of the list: a wrong one for each pair."""
    shift = len(pairs) // 3
    return [pair.expected for pair in [*pairs[shift:], *pairs[:shift]]]
