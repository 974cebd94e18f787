"""Composes a finished image: scales it down, and pastes the original outside the mask.

Pure functions without state: they run on any thread. Must not know torch, the engine or the wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray


def scaled_down(pixels: NDArray[np.uint8], *, width: int, height: int) -> NDArray[np.uint8]:
    """Returns (height, width, 3) uint8: scaled by Lanczos, and cropped where proportions differ."""
    size = (width, height)
    return np.array(ImageOps.fit(Image.fromarray(pixels), size, Image.Resampling.LANCZOS))


def paste(
    generated: NDArray[np.uint8],
    *,
    original: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    feather: float,
) -> NDArray[np.uint8]:
    """Returns the generated image where the mask is white, and the original's pixels elsewhere.

    Args:
        generated: (height, width, 3) uint8.
        original: (height, width, 3) uint8.
        mask: (height, width) uint8, 255 or 0.
        feather: Width in pixels, inside the mask, over which the original fades into the generated
            image.
    """
    weight = mask.astype(np.float64) / 255
    if feather and not mask.all():
        weight = _depth(mask, most=feather)
    mixed = original + (generated.astype(np.float32) - original) * weight[..., None]
    return mixed.round().astype(np.uint8)


def _depth(mask: NDArray[np.uint8], *, most: float) -> NDArray[np.float64]:
    """Returns how deep inside the mask each pixel lies, from 0 outside to 1 at ``most`` and deeper.

    A part of the mask that is nowhere that deep has 1 where it is deepest, so that it shows too.
    """
    depth = ndimage.distance_transform_edt(mask) - 0.5
    parts, num_parts = ndimage.label(mask)
    deepest = ndimage.maximum(depth, parts, index=range(num_parts + 1))
    reach = np.clip(deepest, 0.5, most)[parts]
    weight: NDArray[np.float64] = (depth / reach).clip(0, 1)
    return weight
