"""The scheduler that a request names, and whether the model has it. Pure; any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentwire_server.engine.errors import Violation, quoted
from latentwire_server.models.info import SchedulerChoice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentwire_server.models.info import ModelInfo
    from latentwire_server.requests.draft import RequestDraft


def scheduler_of(draft: RequestDraft, info: ModelInfo) -> SchedulerChoice:
    """Returns the scheduler that is meant: given in full, in part, or the model's."""
    if draft.scheduler_id is None and draft.sigmas is None:
        return info.defaults.scheduler
    return SchedulerChoice(
        id=draft.scheduler_id or info.defaults.scheduler.id, sigmas=draft.sigmas or "default"
    )


def num_steps_of(draft: RequestDraft, info: ModelInfo) -> int:
    """Returns the steps that are given, or the model's."""
    given = draft.num_inference_steps
    return info.defaults.num_inference_steps if given is None else given


def scheduler_violations(draft: RequestDraft, info: ModelInfo) -> Iterator[Violation]:
    """Yields what is wrong by the model's list of schedulers."""
    choice, num_steps = scheduler_of(draft, info), num_steps_of(draft, info)
    known = {scheduler.id: scheduler for scheduler in info.schedulers}
    scheduler = known.get(choice.id)
    if scheduler is None:
        yield Violation(
            field="scheduler.id",
            reason="UNKNOWN_SCHEDULER",
            description=f"the model has no scheduler {quoted(choice.id)};"
            f" it has: {', '.join(known)}",
        )
        return
    if choice.sigmas not in scheduler.sigmas:
        yield Violation(
            field="scheduler.sigmas",
            reason="UNSUPPORTED_SIGMAS",
            description=f"{scheduler.id} takes no sigmas {quoted(choice.sigmas)};"
            f" it takes: {', '.join(scheduler.sigmas)}",
        )
    most = scheduler.max_inference_steps
    # Beyond the model's own limit it is out of range already.
    if most is not None and most < num_steps <= info.limits.max_inference_steps:
        yield Violation(
            field="num_inference_steps",
            reason="UNSUPPORTED_STEPS",
            description=f"scheduler {scheduler.id} cannot take {num_steps} steps;"
            f" allowed: 1 to {most}",
        )
