"""Plain text for people: aligned columns, durations, sizes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns the rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        + "\n"
        for row in rows
    )


def fields(pairs: Iterable[tuple[str, object]]) -> str:
    """Returns one ``name  value`` line per pair."""
    return columns([(name, str(value)) for name, value in pairs])


def duration(seconds: float) -> str:
    """Returns a duration for people: ``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S:02} s"
    return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S:02} min"


def one_line(text: str) -> str:
    """Returns the text without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)
