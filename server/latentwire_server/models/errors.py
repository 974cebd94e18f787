"""Why a model or one of its parts cannot be used. Must not know torch."""

from __future__ import annotations


class LoraError(Exception):
    """A LoRA cannot be used; the text is one line without its path."""

    def __init__(self, id_: str, reason: str) -> None:
        super().__init__(f"LoRA {id_!r}: {reason}")
        self.id = id_
        self.reason = reason


class LoadError(Exception):
    """A model cannot be loaded; the text is one line that names the source and the reason."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"model {source!r}: {reason}")
        self.source = source
        self.reason = reason


class BackendError(Exception):
    """A denoiser backend is not available here; the text names it and the reason."""


class PrecisionError(ValueError):
    """A device or number format is not available here; the text names it and the alternatives."""
