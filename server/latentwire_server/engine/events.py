"""Events of a generation, in the order in which they happen. Frozen values; any thread."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentwire_server.engine.request import GenerationRequest


class PhaseName(StrEnum):
    """The phases of a generation's progress."""

    ENCODING = "encoding"
    DENOISING = "denoising"
    DECODING = "decoding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Warning:  # noqa: A001 - the contract's word
    """Something that is done differently from what the caller may expect."""

    field: str
    reason: str
    message: str
    replacement: str = ""
    """The text that was used instead of the field's value, where the warning is about a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The request is accepted."""

    request: GenerationRequest
    warnings: tuple[Warning, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """The generation waits in the queue."""

    ahead_count: int
    estimated_wait_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoading:
    """The model that the generation waits for is being loaded."""

    model: str
    """The model's id."""
    loaded_bytes: int
    total_bytes: int
    """0: unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step is done."""

    phase: PhaseName
    step: int
    step_count: int
    fraction: float
    estimated_remaining_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The image as predicted at a step, encoded."""

    image_index: int
    step: int
    media_type: str
    width: int
    height: int
    data: bytes


class FinishReason(StrEnum):
    """The reasons why an image is finished."""

    COMPLETED = "completed"
    FILTERED = "filtered"
    """Withheld by the model's safety checker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A finished image, encoded; without data if it is withheld."""

    index: int
    seed: int
    media_type: str
    width: int
    height: int
    data: bytes
    finish_reason: FinishReason = FinishReason.COMPLETED


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The seconds that a generation spent in each stage."""

    queued_s: float
    encoding_s: float
    denoising_s: float
    decoding_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """All images are delivered."""

    image_count: int
    timings: Timings
    peak_memory_bytes: int
    model_revision: str


Event = Accepted | Queued | ModelLoading | Progress | Preview | Image | Completed
