"""Live displays on a terminal: a generation with its image forming, and a status line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

from rich.color import Color
from rich.console import Console, Group
from rich.control import Control
from rich.live import Live
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as ProgressBar
from rich.segment import ControlType, Segment
from rich.style import Style
from rich.text import Text

from latentwire._cli.reporting import Reporter, event_lines, interrupted_line, saved_line
from latentwire._events import Accepted, Completed, Image, Preview, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image as PillowImage
    from rich.console import ConsoleOptions, RenderResult

    from latentwire._events import Event

_UPPER_HALF: Final = "\N{UPPER HALF BLOCK}"
_LINES_FOR_TEXT: Final = 3
_SPINNER: Final = "-\\|/"
_SPINNER_STEP_S: Final = 0.1


class LiveReporter(Reporter):
    """Reports on standard error, so that standard output stays free for the image."""

    def __init__(self, *, shows_images: bool, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._shows_images = shows_images
        self._bar = ProgressBar(
            SpinnerColumn(),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}", markup=False),
            console=self._console,
        )
        self._task = self._bar.add_task("connecting", total=1.0)
        self._live = Live(self._bar, console=self._console, transient=True, redirect_stdout=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def show(self, event: Event) -> None:
        """Updates the bar, or prints the lines that are to stay."""
        lines = event_lines(event)
        match event:
            case Accepted():
                self._set_status("accepted")
                for line in lines[1:]:
                    self._print(line)
            case Progress():
                self._set_status(lines[0])
                self._bar.update(self._task, completed=event.fraction)
            case Preview() if self._shows_images:
                self._live.update(Group(HalfBlocks(event.pil()), self._bar))
            case Completed() | Image():
                self._print(lines[0])
            case _:
                for line in lines:
                    self._set_status(line)

    def saved(self, image: Image, *, path: Path | None) -> None:
        """Prints where the image was written, below the image itself if images are shown."""
        if self._shows_images:
            self._live.update(self._bar)
            self._console.print(HalfBlocks(image.pil()))
        self._print(saved_line(image, path=path))

    def interrupted(self, generation: str, *, is_confirmed: bool) -> None:
        self._print(interrupted_line(generation, is_confirmed=is_confirmed))

    def _set_status(self, text: str) -> None:
        self._bar.update(self._task, description=text)

    def _print(self, line: str) -> None:
        self._console.print(Text(line))


class HalfBlocks:
    """An image as characters, as large as the terminal allows with lines left for text below.

    Each character is an upper half block: two pixels in 24-bit colour, which rich maps to the
    nearest colours of terminals with fewer.
    """

    def __init__(self, image: PillowImage.Image) -> None:
        self._image = image.convert("RGB")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the image's lines."""
        from PIL.Image import Resampling  # noqa: PLC0415 - optional

        columns, rows = self._size(options.max_width, console.height - _LINES_FOR_TEXT)
        pixels = self._image.resize((columns, 2 * rows), Resampling.BOX).tobytes()
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
        width, height = self._image.size
        scale = min(1.0, max_columns / width, max(1, max_rows) * 2 / height)
        return max(1, round(width * scale)), max(1, round(height * scale / 2))


class StatusLine:
    """One line on standard error that is updated in place.

    It leaves the cursor at its start, so that a line from another process replaces it.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    def draw(self, status: str) -> None:
        """Replaces the line."""
        self.erase()
        spinner = _SPINNER[int(time.monotonic() / _SPINNER_STEP_S) % len(_SPINNER)]
        text = Text(f"{spinner} {status}")
        self._console.print(text, end="\r", no_wrap=True, overflow="ellipsis")

    def erase(self) -> None:
        """Leaves an empty line."""
        self._console.control(Control((ControlType.ERASE_IN_LINE, 2)))
