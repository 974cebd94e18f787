"""Who gets in, and what they are told at the door, before any device work.

Pure functions of plain values, in the order in which they are asked.
"""

from __future__ import annotations

import re
from bisect import bisect_right
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
from latentwire_server.engine.estimate import retry_after_s
from latentwire_server.engine.types import Warning as RequestWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentwire_server.engine.estimate import Estimator, WorkLeft
    from latentwire_server.engine.types import EngineSettings, GenerationRequest
    from latentwire_server.models.model import ModelOutline

DRAINING_RETRY_S = 10.0
"""What a caller is told who meets a server that shuts down: about a restart's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The engine as a newcomer finds it."""

    is_draining: bool
    has_failed: bool
    running_count: int
    queued_count: int
    wait_s: Callable[[], float | None]
    """Estimates how long the newcomer waits for its place; asked only where it matters."""


def refusal(
    work: WorkLeft,
    *,
    deadline: float | None,
    now: float,
    load: Load,
    estimator: Estimator,
    settings: EngineSettings,
) -> GenerationError | None:
    """Returns why ``work`` is refused, or ``None`` if it is welcome."""
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
        return _too_short(work, remaining_s=deadline - now, load=load, estimator=estimator)
    return None


def _too_short(
    work: WorkLeft, *, remaining_s: float, load: Load, estimator: Estimator
) -> DeadlineTooShort | None:
    """Judges by the least time that it can take, so that nobody is refused who might make it."""
    wait_s = load.wait_s()
    run_s = estimator.least_s(work)
    if wait_s is None or run_s is None or wait_s + run_s <= remaining_s:
        return None
    return DeadlineTooShort(needed_s=wait_s + run_s, remaining_s=remaining_s)


def warnings_of(request: GenerationRequest, model: ModelOutline) -> tuple[RequestWarning, ...]:
    """Returns what the caller should know: what of the request the model does not do."""
    return (
        *_dropped_texts(request, model),
        *_larger_drawing(request),
        *_hidden_previews(request, model),
    )


def _dropped_texts(request: GenerationRequest, model: ModelOutline) -> tuple[RequestWarning, ...]:
    prompts = {"prompt": request.prompt}
    if request.uses_guidance:
        prompts["negative_prompt"] = request.negative_prompt
    dropped = {field: model.dropped_text(prompt) for field, prompt in prompts.items()}
    return tuple(
        RequestWarning(
            field=field,
            reason="PROMPT_TRUNCATED",
            message=f"The text encoder does not read so far; dropped: {text!r}",
            replacement=read_part(prompts[field], model.dropped_text),
        )
        for field, text in dropped.items()
        if text
    )


def read_part(prompt: str, dropped_text: Callable[[str], str]) -> str:
    """Returns the words of a prompt that the model reads to their end; at least something of it.

    Found by asking, since a tokenizer gives back neither capitals nor spaces.
    """
    ends = [word.end() for word in re.finditer(r"\S+", prompt)]
    if ends and dropped_text(prompt[: ends[0]]):
        ends = list(range(1, ends[0] + 1))
    num_read = bisect_right(ends, 0, key=lambda end: len(dropped_text(prompt[:end])))
    return prompt[: ends[num_read - 1]] if num_read else ""


def _larger_drawing(request: GenerationRequest) -> tuple[RequestWarning, ...]:
    if request.delivered_size is None:
        return ()
    width, height = request.delivered_size
    warning = RequestWarning(
        field="width",
        reason="DRAWN_LARGER",
        message=f"Drawn at {request.width}x{request.height}, as the model draws best, and made"
        f" smaller: {width}x{height}",
    )
    return (warning,)


def _hidden_previews(request: GenerationRequest, model: ModelOutline) -> tuple[RequestWarning, ...]:
    checker = model.safety_checker
    if not request.events.preview_interval_steps or checker is None or not checker.hides_previews:
        return ()
    warning = RequestWarning(
        field="events.preview_interval_steps",
        reason="PREVIEWS_WITHHELD",
        message="The model has a safety checker, and previews do not pass it: there are none",
    )
    return (warning,)
