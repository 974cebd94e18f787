"""The client's values as JSON for machines. Pure."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import datetime
from typing import TYPE_CHECKING

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from latentwire._events import Image

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from latentwire._events import Event
    from latentwire.errors import LatentwireError


def json_line(record: Mapping[str, object]) -> str:
    """Returns one line of JSON."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


def event_record(event: Event, *, path: Path | None = None) -> dict[str, object]:
    """Returns an event without its picture's bytes; ``path`` is where an image was written."""
    record: dict[str, object] = {"event": _snake_case(type(event).__name__)}
    record |= value_record(event)
    if isinstance(event, Image):
        record |= {"size_bytes": len(event.data), "path": None if path is None else str(path)}
    return record


def error_record(error: LatentwireError) -> dict[str, object]:
    """Returns an error as the last line of a stream of events."""
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
    """Returns a frozen value's fields, those of pictures' bytes left out."""
    if not dataclasses.is_dataclass(value):
        msg = f"{type(value).__name__} is no dataclass"
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


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
