"""Why an adapter cannot be used. Knows no torch."""

from __future__ import annotations


class LoraError(Exception):
    """An adapter cannot be used; the text is one line without its path."""

    def __init__(self, id_: str, reason: str) -> None:
        super().__init__(f"adapter {id_!r}: {reason}")
        self.id = id_
        self.reason = reason
