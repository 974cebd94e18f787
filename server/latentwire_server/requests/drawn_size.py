"""How large a picture is drawn, where that is not how large it is delivered. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latentwire_server.models.info import ModelInfo

_ROUNDING: Final = 1e-6


def drawn_size(width: int, height: int, info: ModelInfo) -> tuple[int, int]:
    """Returns the width and height at which a model draws a picture of this size.

    Below ``min_drawn_pixels`` some models draw badly, and at their own size well: then the picture
    is drawn at as many pixels as they have by default, in its own proportions, as far as the limits
    allow, and made smaller.
    """
    limits, defaults = info.limits, info.defaults
    num_pixels = width * height
    if num_pixels >= limits.min_drawn_pixels:
        return width, height
    most_pixels = min(defaults.width * defaults.height, limits.max_pixels)
    scale = min(math.sqrt(most_pixels / num_pixels), limits.max_side / max(width, height))
    if scale <= 1:
        return width, height
    multiple = limits.side_multiple
    return (
        int(width * scale / multiple + _ROUNDING) * multiple,
        int(height * scale / multiple + _ROUNDING) * multiple,
    )
