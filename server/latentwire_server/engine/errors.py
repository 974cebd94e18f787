"""The ways in which a generation fails: whose fault, and the data of it, no prose.

Pure values. They become a gRPC status in ``status.py`` and nowhere else.
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
    """A generation or a call about one ended without what was asked for."""


class CallerError(GenerationError):
    """The caller asked for something that cannot be had; asking again will not help."""


class CapacityError(GenerationError):
    """There is no room at present."""


class ServerError(GenerationError):
    """The server failed."""


@dataclass(eq=False)
class InvalidRequest(CallerError):
    """The request breaks rules; all of them are named."""

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
    """The caller has sent another request under this id."""

    request_id: str


@dataclass(eq=False)
class Cancelled(CallerError):
    """The generation was cancelled by ``CancelGeneration``."""


@dataclass(eq=False)
class DeadlineTooShort(CallerError):
    """The deadline cannot be met, so nothing was started."""

    needed_s: float
    remaining_s: float


@dataclass(eq=False)
class DeadlinePassed(CallerError):
    """The deadline passed before the generation was done."""


@dataclass(eq=False)
class QueueFull(CapacityError):
    """As many generations wait as may wait."""

    max_queued: int
    retry_after_s: float


@dataclass(eq=False)
class DeviceOutOfMemory(CapacityError):
    """The generation does not fit the device even alone."""

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
    """The server is shutting down and takes no new work."""

    retry_after_s: float


@dataclass(eq=False)
class SlowReader(CallerError):
    """The client read nothing for longer than the server waits."""

    send_timeout_s: float


@dataclass(eq=False)
class ModelFailed(ServerError):
    """The model could not be loaded."""

    name: str
    reason: str


@dataclass(eq=False)
class LoraUnusable(ServerError):
    """An adapter that the model lists cannot be loaded; ``reason`` may be told to the caller."""

    id: str
    reason: str


@dataclass(eq=False)
class NonFiniteOutput(ServerError):
    """The denoiser or the decoder gave NaN or infinity for this generation."""

    step: int


@dataclass(eq=False)
class DeviceFailed(ServerError):
    """The device is broken; the process is about to end."""


@dataclass(eq=False)
class PipelineFailed(ServerError):
    """This generation failed for a reason that is in the log under ``error_id``."""

    error_id: str


class ModelUnusable(Exception):
    """A model was loaded and cannot draw one image here; the text is one line."""

    reason = "it was loaded and cannot draw here; the server's log says more"
    """For callers."""

    def __init__(self, model: str, error: Exception) -> None:
        first_line = (str(error).strip().splitlines() or [""])[0][:200]
        what = f"{type(error).__name__}: {first_line}"
        super().__init__(f"model {model!r}: cannot draw here ({what})")


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
    """Returns a caller's text as it may stand in a message: shortened, in ASCII."""
    shown = text if len(text) <= _MAX_QUOTED_CHARACTERS else text[:_MAX_QUOTED_CHARACTERS] + "..."
    return ascii(shown)
