"""The invisible watermark that ``StableDiffusionXLPipeline`` writes, in pictures of any family.

diffusers' own class writes it, by the package ``invisible-watermark``, which is loaded only where
an operator asks for it. Loading threads make a writer, the device thread uses it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latentwire_server.models.errors import LoadError

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.stable_diffusion_xl.watermark import StableDiffusionXLWatermarker

    from latentwire_server.models.info import ModelInfo

MISSING_WATERMARK: Final = "needed: invisible-watermark, by pip install 'latentwire[watermark]'"
LEAST_SIDE: Final = 256
"""Diffusers leaves narrower pictures as they are, and the package refuses smaller ones."""
WATERMARK: Final = "watermark"
"""The capability of a model whose pictures carry one."""


class InvisibleWatermark:
    """Writes 48 bits, always the same, into the brightness of a picture."""

    def __init__(self, writer: StableDiffusionXLWatermarker) -> None:
        """Takes what writes it."""
        self._writer = writer

    def applied(self, image: torch.Tensor) -> torch.Tensor:
        """Returns a picture, (3, height, width) float32, with the watermark.

        Not clamped before, as in the pipeline: the bits hang on the decoder's very numbers.
        """
        marked: torch.Tensor = self._writer.apply_watermark(image[None] * 2 - 1)
        return marked[0] / 2 + 0.5


def load_watermark(source: str) -> InvisibleWatermark:
    """Returns what writes the watermark.

    Args:
        source: the model that it is for.

    Raises:
        LoadError: the package is not there, or does not load.
    """
    try:
        from diffusers.pipelines.stable_diffusion_xl import watermark  # noqa: PLC0415
    except ImportError as error:
        # OpenCV, which it computes with, wants a display's libraries in one of its packages.
        reason = f"watermark=true: invisible-watermark does not load ({error})"
        raise LoadError(source, reason) from error
    # Without the package, diffusers' module leaves it out.
    if not hasattr(watermark, "WatermarkEncoder"):
        raise LoadError(source, f"watermark=true: {MISSING_WATERMARK}")
    return InvisibleWatermark(watermark.StableDiffusionXLWatermarker())


def with_watermark(info: ModelInfo, *, source: str) -> ModelInfo:
    """Returns the description of a model all of whose pictures are large enough for a watermark.

    Raises:
        LoadError: it draws smaller ones unless it is told otherwise.
    """
    if min(info.defaults.width, info.defaults.height) < LEAST_SIDE:
        size = f"{info.defaults.width}x{info.defaults.height}"
        reason = f"watermark=true: needed: sides of {LEAST_SIDE} at least; its default size: {size}"
        raise LoadError(source, reason)
    return replace(
        info,
        capabilities=(*info.capabilities, WATERMARK),
        limits=replace(info.limits, min_side=max(LEAST_SIDE, info.limits.min_side)),
    )
