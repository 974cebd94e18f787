"""Values as text for people and as JSON for machines. No I/O."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from latentwire._events import Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from latentwire._events import Event
    from latentwire.errors import LatentwireError

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
    """Returns a duration such as ``0.4 s``, ``12 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S:02} s"
    return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S:02} min"


def one_line(text: str) -> str:
    """Replaces control characters, which a terminal would obey, with spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


def json_line(record: Mapping[str, object]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


def event_record(event: Event, *, path: Path | None = None) -> dict[str, object]:
    """Returns an event without image bytes; ``path`` is where the image was written."""
    kind = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    record: dict[str, object] = {"event": kind, **value_record(event)}
    if isinstance(event, Image):
        record |= {"size_bytes": len(event.data), "path": None if path is None else str(path)}
    return record


def error_record(error: LatentwireError) -> dict[str, object]:
    """Returns an error as the last record of a stream of events."""
    return {
        "event": "error",
        "error": type(error).__name__,
        "code": None if error.code is None else error.code.name,
        "reason": error.reason,
        "message": error.message,
        "metadata": error.metadata,
        "violations": [dataclasses.asdict(violation) for violation in error.violations],
        "retry_after_s": error.retry_after_s,
    }


def value_record(value: object) -> dict[str, object]:
    """Returns the fields of a frozen value except image bytes."""
    if not dataclasses.is_dataclass(value):
        msg = f"{type(value).__name__} is not a dataclass"
        raise TypeError(msg)
    return {
        field.name: _plain(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if field.name != "data"
    }


def _plain(value: object) -> object:
    plain: object
    match value:
        case Message():
            plain = MessageToDict(value, preserving_proto_field_name=True)
        case datetime():
            plain = value.isoformat()
        case bytes():
            plain = value.hex()
        case tuple():
            plain = [_plain(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            plain = value_record(value)
        case _:
            plain = value
    return plain
