"""Whether two systems draw the same pictures: a speed without that is no speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

MAX_DIFFERENCE: Final = 2
"""Of 255, in float32: the bound of the oracle tests."""
MIN_PSNR_DB: Final = 40.0
"""In a shorter number format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far two pictures are apart."""

    max_difference: int
    psnr_db: float

    def is_good(self, *, in_float32: bool) -> bool:
        """Whether that is within what rounding explains."""
        if in_float32:
            return self.max_difference <= MAX_DIFFERENCE
        return self.psnr_db >= MIN_PSNR_DB


def compare(image: Image.Image, other: Image.Image) -> Agreement:
    """Compares two pictures of one size."""
    difference = np.asarray(image, np.int16) - np.asarray(other, np.int16)
    mean_square = float(np.square(difference, dtype=np.float64).mean())
    psnr_db = float("inf") if mean_square == 0 else 10 * np.log10(255**2 / mean_square)
    return Agreement(max_difference=int(np.abs(difference).max()), psnr_db=float(psnr_db))
