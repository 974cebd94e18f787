"""Source images and masks."""

from __future__ import annotations

import numpy as np

from tests.support.models.oracle import SIDE


def coloured_blobs(seed: int, *, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """Returns coarse blocks of colour: the encoder's latents of noise would have no structure."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3))
    return np.kron(coarse, np.ones((16, 16, 1))).astype(np.uint8)


def centred_mask(*, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """Returns a mask of a rectangle that is not on the latents' grid."""
    mask = np.zeros((height, width), np.uint8)
    mask[10 : height - 20, 14 : width - 7] = 255
    return mask


def random_mask(seed: int, *, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """Returns a mask of a rectangle somewhere, not on the latents' grid."""
    left, top = np.random.default_rng(seed).integers(3, 30, 2)
    mask = np.zeros((height, width), np.uint8)
    mask[top : height - 9, left : width - 5] = 255
    return mask
