"""The safety checker of Stable Diffusion 1.x: decides whether an image is close to unsafe concepts.

diffusers' ``StableDiffusionSafetyChecker`` decides, on the same input as in
``StableDiffusionPipeline``. It only answers yes or no; withholding the image is up to the caller.
Device thread only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

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


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadedSafetyChecker:
    """A safety checker whose weights are not loaded, as part of a model's spec."""

    hides_previews: bool
    num_bytes: int = 0

    def flags(self, pixels: NDArray[np.uint8]) -> bool:
        raise NotImplementedError


class ClipSafetyChecker:
    """Compares an image's CLIP embedding with those of concepts, each with its threshold.

    Computes in float32, whatever the model's dtype: the margins are thousandths, as small as
    bfloat16's rounding.
    """

    def __init__(
        self,
        module: StableDiffusionSafetyChecker,
        processor: transformers.BaseImageProcessor,
        *,
        hides_previews: bool,
    ) -> None:
        """Wraps the checker, which is on its device already, and its image processor."""
        self._module = module
        self._processor = processor
        self._device = module.concept_embeds.device
        self.hides_previews: Final = hides_previews
        # NaN exceeds no threshold, and would pass as safe.
        module.visual_projection.register_forward_hook(_refuse_non_finite)

    @property
    def num_bytes(self) -> int:
        return held_bytes([self._module])

    @torch.inference_mode()
    def flags(self, pixels: NDArray[np.uint8]) -> bool:
        """Returns whether an image, (height, width, 3) RGB, must be withheld.

        Raises:
            ArithmeticError: the checker computes NaN or infinity.
        """
        image = self._processor(Image.fromarray(pixels), return_tensors="pt").pixel_values
        # The checker blackens the images that it flags, here a single pixel that nobody uses.
        scratch = [np.zeros((1, 1, 3), np.float32)]
        _, are_flagged = self._module(clip_input=to_device(image, self._device), images=scratch)
        return bool(are_flagged[0])


def load_processor(folder: Path) -> transformers.BaseImageProcessor:
    """Loads the checker's image processor from a model's folder.

    Always the one that uses Pillow, even if torchvision is installed: the checker's thresholds were
    found with it.
    """
    # Before version 5, transformers had only one, without the suffix.
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
