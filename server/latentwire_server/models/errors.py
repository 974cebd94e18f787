"""Why an adapter cannot be used. Knows no torch."""

from __future__ import annotations


class LoraError(Exception):
    """An adapter cannot be used; the text is one line without its path."""

    def __init__(self, id_: str, reason: str) -> None:
        super().__init__(f"adapter {id_!r}: {reason}")
        self.id = id_
        self.reason = reason


class LoadError(Exception):
    """A model cannot be loaded; the text is one line that names the source and the reason."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"model {source!r}: {reason}")
        self.source = source
        self.reason = reason


class BackendError(Exception):
    """A backend cannot be had here; the text says which and why."""


class PrecisionError(ValueError):
    """The device or the number format cannot be had here; the text names both and what can."""
