"""The live display of a generation on a terminal: a bar, what is going on, the picture forming."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text

from latentwire._cli.reporting import event_lines, interrupted_line, saved_line
from latentwire._events import Accepted, Completed, Image, Preview, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image as PillowImage

    from latentwire._cli.half_blocks import HalfBlocks
    from latentwire._events import Event
    from latentwire.errors import LatentwireError


class LiveReporter:
    """Draws on standard error, so that standard output stays free for the image."""

    def __init__(self, *, shows_pictures: bool, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._shows_pictures = shows_pictures
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
        """Updates the bar, or prints what shall stay."""
        lines = event_lines(event)
        match event:
            case Accepted():
                self._say("accepted")
                for line in lines[1:]:
                    self._print(line)
            case Progress():
                self._say(lines[0])
                self._bar.update(self._task, completed=event.fraction)
            case Preview() if self._shows_pictures:
                self._draw(event.pil())
            case Completed():
                self._print(lines[0])
            case Image():
                self._print(lines[0])
            case _:
                for line in lines:
                    self._say(line)

    def saved(self, image: Image, *, path: Path | None) -> None:
        """Prints where the image is, below the image itself where pictures are wanted."""
        if self._shows_pictures:
            self._live.update(self._bar)
            self._console.print(_half_blocks(image.pil()))
        self._print(saved_line(image, path=path))

    def interrupted(self, generation: str, *, is_confirmed: bool) -> None:
        """Prints what became of the generation."""
        self._print(interrupted_line(generation, is_confirmed=is_confirmed))

    def failed(self, error: LatentwireError) -> None:
        """Leaves the error to the command, which prints it below."""

    def _say(self, text: str) -> None:
        self._bar.update(self._task, description=text)

    def _print(self, line: str) -> None:
        self._console.print(Text(line))

    def _draw(self, picture: PillowImage.Image) -> None:
        self._live.update(Group(_half_blocks(picture), self._bar))


def _half_blocks(picture: PillowImage.Image) -> HalfBlocks:
    # Needs Pillow, which is optional.
    from latentwire._cli.half_blocks import HalfBlocks  # noqa: PLC0415

    return HalfBlocks(picture)
