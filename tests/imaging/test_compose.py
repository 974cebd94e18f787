"""Composing a finished image: generated pixels inside the mask, the original outside."""

from __future__ import annotations

import numpy as np
import pytest

from latentwire_server.imaging.compose import paste


@pytest.mark.parametrize("feather", [0.0, 4.0, 30.0])
def test_unmasked_pixels_stay_exactly_as_they_are(feather: float) -> None:
    rng = np.random.default_rng(0)
    generated, original = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:50, 20:60] = 255
    pasted = paste(generated, original=original, mask=mask, feather=feather)
    assert (pasted[mask == 0] == original[mask == 0]).all()
    if feather == 0:
        assert (pasted[mask == 255] == generated[mask == 255]).all()
    elif feather == 4:
        assert (pasted[30, 40] == generated[30, 40]).all()
        between = np.minimum(original[30, 20], generated[30, 20]) <= pasted[30, 20]
        assert between.all()


@pytest.mark.parametrize("side", [1, 2, 5, 9])
def test_a_mask_part_smaller_than_the_feather_still_shows(side: int) -> None:
    generated, original = np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[20 : 20 + side, 20 : 20 + side] = 255
    # A large part elsewhere changes nothing about it.
    mask[:, 50:] = 255
    pasted = paste(generated, original=original, mask=mask, feather=4.0)
    assert (pasted[20 + side // 2, 20 + side // 2] == 200).all()
    assert (pasted[mask == 0] == 0).all()
    assert pasted[5, 50].max() < 50
    # The image's own edge is no edge of the mask.
    assert (pasted[:, 63] == 200).all()


@pytest.mark.parametrize("feather", [0.0, 0.3, 4.0])
def test_a_mask_of_the_whole_image_leaves_nothing_of_the_original(feather: float) -> None:
    generated, original = np.full((8, 8, 3), 200, np.uint8), np.zeros((8, 8, 3), np.uint8)
    mask = np.full((8, 8), 255, np.uint8)
    assert (paste(generated, original=original, mask=mask, feather=feather) == 200).all()
