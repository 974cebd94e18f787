"""The images of diffusers' own pipelines in a row: with a refiner, or in two passes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch

from latentwire_server.engine.request import HighResolutionFix
from tests.support.models.oracle import SCHEDULERS, SIDE, STABLE_DIFFUSION_XL, Case, Oracle

if TYPE_CHECKING:
    from pathlib import Path

LARGE: dict[str, Any] = {
    "width": 2 * SIDE,
    "height": 2 * SIDE,
    "num_inference_steps": 6,
    "high_resolution_fix": HighResolutionFix(width=SIDE, height=SIDE, strength=0.5),
}
"""A size that is generated in two passes."""


class EnsembleOracle:
    """The base pipeline to ``denoising_end``, then the refiner's from ``denoising_start``."""

    def __init__(self, base: Path, refiner: Path) -> None:
        self._base = Oracle(base, pipelines=STABLE_DIFFUSION_XL)
        shared = self._base.pipeline
        self._refiner = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(
            refiner, local_files_only=True, vae=shared.vae, add_watermarker=False
        )
        self._refiner.set_progress_bar_config(disable=True)
        self._config = dict(self._refiner.scheduler.config)

    def load_loras(self, folder: Path) -> None:
        """Loads the LoRAs of a folder into the base pipeline."""
        self._base.load_loras(folder)

    def generate(self, case: Case) -> list[np.ndarray]:
        share = case.high_noise_frac
        if share == 1.0:
            return self._base.generate(case)
        generators = _generators(case)
        common = {"generator": generators, "num_images_per_prompt": case.num_images}
        arguments = case.arguments | case.source_arguments
        pipeline = self._base.pipeline_with_scheduler(case)
        is_refined_alone = case.image is not None and 1 - case.strength >= share
        if is_refined_alone:
            latents = case.source_arguments["image"]
            start = {"strength": case.strength}
        else:
            latents = pipeline(
                **arguments, **common, denoising_end=share, output_type="latent"
            ).images
            start = {"denoising_start": share}
        class_name, options = SCHEDULERS[case.scheduler]
        kind: Any = getattr(diffusers, class_name)
        self._refiner.scheduler = kind.from_config(self._config, **options)
        for name in ("image", "strength", "width", "height"):
            arguments.pop(name, None)
        images = self._refiner(image=latents, **arguments, **start, **common).images
        return [np.asarray(image).astype(np.int16) for image in images]


def generate_in_two_passes(oracle: Oracle, case: Case) -> list[np.ndarray]:
    """Generates the images of both pipelines in a row, with the latents enlarged in between."""
    fix = case.high_resolution_fix
    assert fix is not None
    common = {"generator": _generators(case), "num_images_per_prompt": case.num_images}
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


def _generators(case: Case) -> list[torch.Generator]:
    return [
        torch.Generator("cpu").manual_seed(case.seed + index) for index in range(case.num_images)
    ]
