"""Snapshots of a generation and of the engine. Frozen values; any thread."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentwire_server.engine.request import GenerationRequest


class GenerationState(StrEnum):
    """The states of a generation."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSnapshot:
    """A generation at one point in time. Times are wall-clock seconds since the epoch."""

    request: GenerationRequest
    state: GenerationState
    create_time: float
    end_time: float | None
    ahead_count: int
    step: int
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """The engine's load at one point in time."""

    queued_count: int
    running_count: int
    is_draining: bool
    has_failed: bool
    denoiser_call_count: int
    """Denoiser calls since the start."""
    denoiser_row_count: int
    """Rows of those calls, padding not counted."""
    denoiser_place_count: int
    """Rows that those calls could have had."""
    max_rows: int
    """Most rows of one call, at the default model's native size."""
