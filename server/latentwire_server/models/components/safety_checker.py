"""The safety checker that comes with Stable Diffusion 1.x: is a picture close to unsafe concepts?

diffusers' ``StableDiffusionSafetyChecker`` decides, on what ``StableDiffusionPipeline`` shows it.
Device thread only. It says yes or no; what becomes of the picture is not its business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers
from PIL import Image

from latentwire_server.models.components.placement import held_bytes
from latentwire_server.models.precision import to_device

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from numpy.typing import NDArray


class UnloadedSafetyChecker:
    """Stands for a checker whose weights are not loaded."""

    def __init__(self, *, hides_previews: bool) -> None:
        """Takes whether the model's previews are kept back."""
        self._hides_previews = hides_previews

    @property
    def hides_previews(self) -> bool:
        """Whether previews are kept back. Any thread."""
        return self._hides_previews

    @property
    def num_bytes(self) -> int:
        """Nothing."""
        return 0

    def flags(self, pixels: NDArray[np.uint8]) -> bool:
        """Cannot say."""
        raise NotImplementedError


class ClipSafetyChecker:
    """Compares a picture's CLIP embedding with those of concepts, each with its threshold.

    Computes in float32 whatever the model does: the margins that decide are thousandths, which
    is what bfloat16 rounds to.
    """

    def __init__(
        self,
        module: StableDiffusionSafetyChecker,
        processor: transformers.BaseImageProcessor,
        *,
        hides_previews: bool,
    ) -> None:
        """Takes the parts, on their device, and whether the model's previews are kept back."""
        self._module = module
        self._processor = processor
        self._device = module.concept_embeds.device
        self._hides_previews = hides_previews
        # NaN is greater than no threshold, so that it would pass for safe.
        module.visual_projection.register_forward_hook(_refuse_non_finite)

    @property
    def hides_previews(self) -> bool:
        """Whether previews are kept back, which could show what is withheld. Any thread."""
        return self._hides_previews

    @property
    def num_bytes(self) -> int:
        """What it takes on the device."""
        return held_bytes([self._module])

    @torch.inference_mode()
    def flags(self, pixels: NDArray[np.uint8]) -> bool:
        """Returns whether a picture, (height, width, 3) RGB, is to be withheld.

        Raises:
            ArithmeticError: the checker computes NaN or infinity.
        """
        picture = self._processor(Image.fromarray(pixels), return_tensors="pt").pixel_values
        # It blackens what it flags: a pixel of no picture.
        scratch = [np.zeros((1, 1, 3), np.float32)]
        _, are_flagged = self._module(clip_input=to_device(picture, self._device), images=scratch)
        return bool(are_flagged[0])


def load_processor(folder: Path) -> transformers.BaseImageProcessor:
    """Returns what scales and cuts a picture for the checker, from a model's folder.

    On Pillow, as the checker's thresholds were found, also where torchvision is installed.
    """
    # Before transformers 5 had two of them, there was this one only.
    has_two = hasattr(transformers, "CLIPImageProcessorPil")
    kind = transformers.CLIPImageProcessorPil if has_two else transformers.CLIPImageProcessor
    return kind.from_pretrained(folder / "feature_extractor", local_files_only=True)


def _refuse_non_finite(
    module: torch.nn.Module, args: Mapping[str, object], embeds: torch.Tensor
) -> None:
    del module, args
    if not bool(torch.isfinite(embeds).all()):
        message = "the safety checker computes NaN or infinity"
        raise ArithmeticError(message)
