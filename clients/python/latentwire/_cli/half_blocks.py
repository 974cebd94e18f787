"""A picture as characters: each is an upper half block, two pixels in 24-bit colour.

Needs Pillow and rich; terminals with fewer colours get the nearest that they have from rich.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from PIL import Image as PillowImage
from rich.color import Color
from rich.segment import Segment
from rich.style import Style

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_UPPER_HALF: Final = "\N{UPPER HALF BLOCK}"
_LINES_FOR_TEXT: Final = 3


class HalfBlocks:
    """Renders a picture as large as the terminal allows, with lines left for text below it."""

    def __init__(self, picture: PillowImage.Image) -> None:
        self._picture = picture.convert("RGB")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the picture's lines."""
        columns, rows = self._size(options.max_width, console.height - _LINES_FOR_TEXT)
        pixels = self._picture.resize((columns, 2 * rows), PillowImage.Resampling.BOX).tobytes()
        stride = 3 * columns
        for row in range(rows):
            upper = pixels[2 * row * stride :]
            lower = pixels[(2 * row + 1) * stride :]
            for at in range(0, stride, 3):
                style = Style(
                    color=Color.from_rgb(*upper[at : at + 3]),
                    bgcolor=Color.from_rgb(*lower[at : at + 3]),
                )
                yield Segment(_UPPER_HALF, style)
            yield Segment.line()

    def _size(self, max_columns: int, max_rows: int) -> tuple[int, int]:
        """Returns columns and rows; a character is about twice as high as it is wide."""
        width, height = self._picture.size
        scale = min(1.0, max_columns / width, max(1, max_rows) * 2 / height)
        return max(1, round(width * scale)), max(1, round(height * scale / 2))
