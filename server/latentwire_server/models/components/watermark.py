"""The invisible watermark of ``StableDiffusionXLPipeline``, for images of any family.

diffusers' own class writes it with the package ``invisible-watermark``, which is imported only if
the operator asks for a watermark. Loading threads create it, the device thread applies it.
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
"""Diffusers leaves narrower images as they are, and the package refuses smaller ones."""
WATERMARK: Final = "watermark"
"""The capability of a model whose images carry a watermark."""


class InvisibleWatermark:
    """Writes 48 bits, always the same, into the brightness of an image."""

    def __init__(self, writer: StableDiffusionXLWatermarker) -> None:
        """Wraps diffusers' watermarker."""
        self._writer = writer

    def applied(self, image: torch.Tensor) -> torch.Tensor:
        """Returns an image, (3, height, width) float32, with the watermark.

        As in the pipeline, the image is not clamped before: the bits depend on the decoder's exact
        values.
        """
        marked: torch.Tensor = self._writer.apply_watermark(image[None] * 2 - 1)
        return marked[0] / 2 + 0.5


def load_watermark(source: str) -> InvisibleWatermark:
    """Creates the watermark for the model ``source``.

    Raises:
        LoadError: the package is missing or does not load.
    """
    try:
        from diffusers.pipelines.stable_diffusion_xl import watermark  # noqa: PLC0415
    except ImportError as error:
        # It uses OpenCV, one of whose packages needs a display's libraries.
        reason = f"watermark=true: invisible-watermark does not load ({error})"
        raise LoadError(source, reason) from error
    # Without the package, diffusers' module does not have the name.
    if not hasattr(watermark, "WatermarkEncoder"):
        raise LoadError(source, f"watermark=true: {MISSING_WATERMARK}")
    return InvisibleWatermark(watermark.StableDiffusionXLWatermarker())


def with_watermark(info: ModelInfo, *, source: str) -> ModelInfo:
    """Returns the description of a model whose images are all large enough for a watermark.

    Raises:
        LoadError: the model's default size is smaller.
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
