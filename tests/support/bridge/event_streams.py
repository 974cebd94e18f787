"""Reads whole event streams strictly: nothing but events of two lines, and comments of one."""

from __future__ import annotations

import json
from typing import Any


def events_in(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(b"\n\n")
    events = []
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            assert "\n" not in block
            continue
        name, body = block.split("\n")
        event = json.loads(body.removeprefix("data: "))
        assert body.startswith("data: ")
        assert name == f"event: {name_of(event)}"
        events.append(event)
    return events


def name_of(event: dict[str, Any]) -> str:
    """Returns the name that the event must have on the wire."""
    return event.get("type", "error")
