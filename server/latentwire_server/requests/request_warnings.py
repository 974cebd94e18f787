"""Warnings about requests that are accepted. Pure; any thread, and takes milliseconds."""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING

from latentwire_server.engine.events import Warning as RequestWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentwire_server.engine.request import GenerationRequest
    from latentwire_server.models.protocol import ModelSpec


def warnings_of(request: GenerationRequest, model: ModelSpec) -> tuple[RequestWarning, ...]:
    """Returns warnings of what the model does differently from what the caller may expect."""
    return (
        *_dropped_texts(request, model),
        *_larger_generation(request),
        *_hidden_previews(request, model),
    )


def _dropped_texts(request: GenerationRequest, model: ModelSpec) -> tuple[RequestWarning, ...]:
    prompts = {"prompt": request.prompt}
    if request.uses_guidance:
        prompts["negative_prompt"] = request.negative_prompt
    dropped = {field: model.dropped_text(prompt) for field, prompt in prompts.items()}
    return tuple(
        RequestWarning(
            field=field,
            reason="PROMPT_TRUNCATED",
            message=f"The text encoder does not read that far; dropped: {text!r}",
            replacement=read_part(prompts[field], model.dropped_text),
        )
        for field, text in dropped.items()
        if text
    )


def read_part(prompt: str, dropped_text: Callable[[str], str]) -> str:
    """Returns the words of a prompt that the model reads in full, or a part of the first one.

    Found by bisection, since a tokenizer returns neither capitals nor spaces.
    """
    ends = [word.end() for word in re.finditer(r"\S+", prompt)]
    if ends and dropped_text(prompt[: ends[0]]):
        ends = list(range(1, ends[0] + 1))
    num_read = bisect_right(ends, 0, key=lambda end: len(dropped_text(prompt[:end])))
    return prompt[: ends[num_read - 1]] if num_read else ""


def _larger_generation(request: GenerationRequest) -> tuple[RequestWarning, ...]:
    if request.delivered_size is None:
        return ()
    width, height = request.delivered_size
    warning = RequestWarning(
        field="width",
        reason="DRAWN_LARGER",
        message=f"Generated at {request.width}x{request.height}, which suits the model better, and"
        f" scaled down to {width}x{height}",
    )
    return (warning,)


def _hidden_previews(request: GenerationRequest, model: ModelSpec) -> tuple[RequestWarning, ...]:
    checker = model.safety_checker
    if not request.events.preview_interval_steps or checker is None or not checker.hides_previews:
        return ()
    warning = RequestWarning(
        field="events.preview_interval_steps",
        reason="PREVIEWS_WITHHELD",
        message="The model has a safety checker, which does not see previews: none are sent",
    )
    return (warning,)
