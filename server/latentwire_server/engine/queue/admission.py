"""Admission: decides whether a new generation is accepted, before any device work.

Pure functions of plain values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentwire_server.engine.errors import (
    DeadlinePassed,
    DeadlineTooShort,
    DeviceFailed,
    Draining,
    GenerationError,
    QueueFull,
)
from latentwire_server.engine.policy.estimate import retry_after_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentwire_server.engine.policy.estimate import Estimator, WorkLeft
    from latentwire_server.engine.settings import EngineSettings

DRAINING_RETRY_S = 10.0
"""Retry delay sent while the server shuts down: about the time of a restart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The load of the engine when a new generation arrives."""

    is_draining: bool
    has_failed: bool
    running_count: int
    queued_count: int
    wait_s: Callable[[], float | None]
    """Estimates how long the new generation waits for its place; called only where needed."""


def refusal(
    work: WorkLeft,
    *,
    deadline: float | None,
    now: float,
    load: Load,
    estimator: Estimator,
    settings: EngineSettings,
) -> GenerationError | None:
    """Returns the error that refuses ``work``, or ``None`` if it is accepted."""
    if load.has_failed:
        return DeviceFailed()
    if load.is_draining:
        return Draining(retry_after_s=DRAINING_RETRY_S)
    if deadline is not None and deadline <= now:
        return DeadlinePassed()
    num_free = max(0, settings.max_running - load.running_count)
    if load.queued_count >= settings.max_queued + num_free:
        return QueueFull(max_queued=settings.max_queued, retry_after_s=retry_after_s(load.wait_s()))
    if deadline is not None:
        # By the least time that it can take, so that nothing is refused that may still be in time.
        wait_s, run_s = load.wait_s(), estimator.least_s(work)
        if wait_s is not None and run_s is not None and wait_s + run_s > deadline - now:
            return DeadlineTooShort(needed_s=wait_s + run_s, remaining_s=deadline - now)
    return None
