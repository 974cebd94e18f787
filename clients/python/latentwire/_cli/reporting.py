"""Reports a running generation: as JSON lines, as plain lines, or not at all.

The live display on a terminal is in ``live``, because it needs rich.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self, TextIO

from latentwire._cli.formatting import (
    duration,
    error_record,
    event_record,
    json_line,
    one_line,
)
from latentwire._events import (
    Accepted,
    Completed,
    Event,
    Image,
    ModelLoading,
    Preview,
    Progress,
    Queued,
)

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire.errors import LatentwireError

_PLAIN_PROGRESS_SHARE: Final = 0.1


class Reporter:
    """Reports one generation, within its context. This class reports nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stops reporting, however the generation ended."""

    def show(self, event: Event) -> None:
        """Reports an event, except an image that was written."""

    def saved(self, image: Image, *, path: Path | None) -> None:
        """Reports that an image was written to ``path``; None is standard output."""

    def interrupted(self, generation: str, *, is_confirmed: bool) -> None:
        """Reports that Ctrl-C ended the generation, and whether the server confirmed that."""

    def failed(self, error: LatentwireError) -> None:
        """Reports an error, in addition to the lines that the command prints."""


class JsonReporter(Reporter):
    """Writes one JSON line per event and flushes it, so that a program can follow."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, event: Event) -> None:
        self._write(event_record(event))

    def saved(self, image: Image, *, path: Path | None) -> None:
        self._write(event_record(image, path=path))

    def interrupted(self, generation: str, *, is_confirmed: bool) -> None:
        self._write(
            {"event": "interrupted", "generation": generation, "is_cancelled": is_confirmed}
        )

    def failed(self, error: LatentwireError) -> None:
        self._write(error_record(error))

    def _write(self, record: dict[str, object]) -> None:
        self._stream.write(json_line(record))
        self._stream.flush()


class PlainReporter(Reporter):
    """Writes a few plain lines, for logs and pipes: no control characters, not every step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phase = ""
        self._next_fraction = 0.0
        self._last_line = ""

    def show(self, event: Event) -> None:
        if isinstance(event, Progress):
            is_new = event.phase != self._phase or event.fraction >= self._next_fraction
            if not is_new:
                return
            self._phase = event.phase
            self._next_fraction = event.fraction + _PLAIN_PROGRESS_SHARE
        for line in event_lines(event):
            self._write(line)

    def saved(self, image: Image, *, path: Path | None) -> None:
        self._write(saved_line(image, path=path))

    def interrupted(self, generation: str, *, is_confirmed: bool) -> None:
        self._write(interrupted_line(generation, is_confirmed=is_confirmed))

    def _write(self, line: str) -> None:
        # The server repeats a queue position every 10 s, even if it has not changed.
        if line != self._last_line:
            self._last_line = line
            self._stream.write(line + "\n")
            self._stream.flush()


def event_lines(event: Event) -> list[str]:  # noqa: PLR0911 - one return per kind
    """Returns the lines that describe an event; may be empty."""
    match event:
        case Accepted():
            seeds = ", ".join(map(str, event.seeds))
            warnings = [f"warning: {one_line(warning.message)}" for warning in event.warnings]
            return [f"accepted, seed {seeds}", *warnings]
        case Queued():
            wait = event.estimated_wait_s
            about = "" if wait is None else f", about {duration(wait)}"
            return [f"queued, {event.ahead_count} ahead{about}"]
        case ModelLoading():
            total = f" of {event.total_bytes >> 20}" if event.total_bytes else ""
            return [f"loading {event.model}, {event.loaded_bytes >> 20}{total} MiB"]
        case Progress():
            left = event.estimated_remaining_s
            about = "" if left is None else f", about {duration(left)} left"
            return [f"{event.phase} {event.step}/{event.step_count}{about}"]
        case Completed():
            return [f"done in {duration(event.timings.total_s)}"]
        case Image():
            return [
                f"image {event.index} was withheld by the server's safety filter, seed {event.seed}"
            ]
        case Preview():
            return []


def saved_line(image: Image, *, path: Path | None) -> str:
    return f"{path or 'standard output'}: {image.width}x{image.height}, seed {image.seed}"


def interrupted_line(generation: str, *, is_confirmed: bool) -> str:
    if is_confirmed:
        return f"interrupted; {generation} is cancelled on the server"
    return f"interrupted; cancelled {generation or 'the generation'}, but without confirmation"
