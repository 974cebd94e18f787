"""Domain errors: they say whose fault a failure is, and carry data instead of prose.

Pure values. They become a gRPC status in ``rpc/status.py`` and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_QUOTED_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One thing that is wrong with a request."""

    field: str
    """Path of the request's field in proto names, such as ``"output.quality"``."""
    reason: str
    """UPPER_SNAKE constant, such as ``"OUT_OF_RANGE"`` or ``"UNSUPPORTED_FIELD"``."""
    description: str
    """Names the value and what is allowed."""


class GenerationError(Exception):
    """A generation, or a call about one, failed."""


class CallerError(GenerationError):
    """The caller asked for something impossible; a retry will not help."""


class CapacityError(GenerationError):
    """The server has no room at present; a retry may help."""


class ServerError(GenerationError):
    """The server failed."""


@dataclass(eq=False)
class InvalidRequest(CallerError):
    """The request breaks rules; carries every violation."""

    violations: tuple[Violation, ...]


@dataclass(eq=False)
class ModelNotFound(CallerError):
    """No model has this name, id or alias."""

    name: str
    known: tuple[str, ...] = ()


@dataclass(eq=False)
class GenerationNotFound(CallerError):
    """The caller has no such generation."""

    name: str


@dataclass(eq=False)
class RequestIdReused(CallerError):
    """The caller has sent a different request with this id."""

    request_id: str


@dataclass(eq=False)
class Cancelled(CallerError):
    """The generation was cancelled by ``CancelGeneration``."""


@dataclass(eq=False)
class DeadlineTooShort(CallerError):
    """The deadline cannot be met, so the generation was not started."""

    needed_s: float
    remaining_s: float


@dataclass(eq=False)
class DeadlinePassed(CallerError):
    """The deadline passed before the generation was completed."""


@dataclass(eq=False)
class QueueFull(CapacityError):
    """The queue has its most generations."""

    max_queued: int
    retry_after_s: float


@dataclass(eq=False)
class DeviceOutOfMemory(CapacityError):
    """The generation does not fit into the device's memory even alone."""

    width: int
    height: int
    num_images: int


@dataclass(eq=False)
class ModelNotReady(CapacityError):
    """The model is still being loaded."""

    name: str
    retry_after_s: float


@dataclass(eq=False)
class ModelInUse(CapacityError):
    """The model cannot be unloaded while generations need it."""

    name: str
    generation_count: int
    retry_after_s: float


@dataclass(eq=False)
class Draining(CapacityError):
    """The server is shutting down and accepts no new work."""

    retry_after_s: float


@dataclass(eq=False)
class SlowReader(CallerError):
    """The client did not read its events for longer than the server waits."""

    send_timeout_s: float


@dataclass(eq=False)
class ModelFailed(ServerError):
    """The model could not be loaded."""

    name: str
    reason: str


@dataclass(eq=False)
class LoraUnusable(ServerError):
    """A LoRA that the model lists cannot be loaded; ``reason`` is safe to send to the caller."""

    id: str
    reason: str


@dataclass(eq=False)
class NonFiniteOutput(ServerError):
    """The denoiser or the decoder returned NaN or infinity for this generation."""

    step: int


@dataclass(eq=False)
class DeviceFailed(ServerError):
    """The device is broken; the process is about to end."""


@dataclass(eq=False)
class PipelineFailed(ServerError):
    """This generation failed for a reason that the log has under ``error_id``."""

    error_id: str


class ModelUnusable(Exception):
    """A loaded model cannot generate one image on this device; the text is one line."""

    reason = "it was loaded but cannot generate images here; the server's log says more"
    """For callers."""

    def __init__(self, model: str, error: Exception) -> None:
        first_line = (str(error).strip().splitlines() or [""])[0][:200]
        what = f"{type(error).__name__}: {first_line}"
        super().__init__(f"model {model!r}: cannot generate images here ({what})")


def ranged(name: str, value: int | None, low: int, high: int) -> Iterator[Violation]:
    """Yields a violation if a value is given and outside its range."""
    if value is not None and not low <= value <= high:
        yield out_of_range(name, value, f"{low} to {high}")


def out_of_range(name: str, value: float, allowed: str) -> Violation:
    """Returns the violation for a number outside its range."""
    return Violation(
        field=name, reason="OUT_OF_RANGE", description=f"{name} is {value}; allowed: {allowed}"
    )


def quoted(text: str) -> str:
    """Returns a caller's text as safe to quote in a message: shortened, in ASCII."""
    shown = text if len(text) <= _MAX_QUOTED_CHARACTERS else text[:_MAX_QUOTED_CHARACTERS] + "..."
    return ascii(shown)
