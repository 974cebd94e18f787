"""Whether two systems generate the same images, without which their speeds cannot be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

MAX_DIFFERENCE: Final = 2
"""Out of 255, in float32: the bound of the tests against diffusers."""
MIN_PSNR_DB: Final = 40.0
"""In bfloat16 or float16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The difference between two images."""

    max_difference: int
    psnr_db: float

    def is_good(self, *, in_float32: bool) -> bool:
        """Whether rounding explains the difference."""
        if in_float32:
            return self.max_difference <= MAX_DIFFERENCE
        return self.psnr_db >= MIN_PSNR_DB


def compare(image: Image.Image, other: Image.Image) -> Agreement:
    """Compares two images of the same size."""
    difference = np.asarray(image, np.int16) - np.asarray(other, np.int16)
    mean_square = float(np.square(difference, dtype=np.float64).mean())
    psnr_db = float("inf") if mean_square == 0 else 10 * np.log10(255**2 / mean_square)
    return Agreement(max_difference=int(np.abs(difference).max()), psnr_db=float(psnr_db))
