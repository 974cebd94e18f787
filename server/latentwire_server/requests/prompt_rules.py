"""Rules for prompts. Pure; any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentwire_server.engine.errors import Violation, quoted
from latentwire_server.models.info import PROMPT_WEIGHTING
from latentwire_server.models.text.prompt_weights import (
    MAX_DEPTH,
    MAX_WEIGHT,
    BracketsTooDeepError,
    weighted_texts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentwire_server.models.info import ModelInfo, ModelLimits
    from latentwire_server.requests.draft import RequestDraft
    from latentwire_server.requests.refused_words import RefusedWords


def _prompts(draft: RequestDraft, limits: ModelLimits) -> Iterator[Violation]:
    # A picture to start from says what to draw too.
    if not draft.prompt.strip() and draft.source is None:
        yield Violation(
            field="prompt", reason="REQUIRED", description="prompt says what to draw; it is empty"
        )
    for name, text in (("prompt", draft.prompt), ("negative_prompt", draft.negative_prompt)):
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > limits.max_prompt_bytes:
            yield Violation(
                field=name,
                reason="TOO_LONG",
                description=f"{name} is {size} bytes long; allowed: {limits.max_prompt_bytes}",
            )


def _words(
    draft: RequestDraft, info: ModelInfo, refused_words: RefusedWords | None
) -> Iterator[Violation]:
    """Reads the prompts, which takes its time: what is too long anyway is not read."""
    texts = (draft.prompt, draft.negative_prompt)
    if max(map(len, texts)) <= info.limits.max_prompt_bytes:
        yield from _refused_words(draft, info, refused_words)
        yield from _weights(draft, info)


def _refused_words(
    draft: RequestDraft, info: ModelInfo, words: RefusedWords | None
) -> Iterator[Violation]:
    if words is None:
        return
    found = words.found_in(draft.prompt) or words.found_in(_as_read(draft.prompt, info))
    if found is not None:
        yield Violation(
            field="prompt",
            reason="PROMPT_REFUSED",
            description=f"the operator of this server has no images drawn of {quoted(found)}",
        )


def _as_read(prompt: str, info: ModelInfo) -> str:
    """Returns a prompt without the notation of weights, which may stand within a word."""
    if PROMPT_WEIGHTING not in info.capabilities:
        return prompt
    try:
        return "".join(part.text for part in weighted_texts(prompt))
    except BracketsTooDeepError:
        return prompt


def _weights(draft: RequestDraft, info: ModelInfo) -> Iterator[Violation]:
    if PROMPT_WEIGHTING not in info.capabilities:
        return
    for name, text in (("prompt", draft.prompt), ("negative_prompt", draft.negative_prompt)):
        try:
            heaviest = max((abs(part.weight) for part in weighted_texts(text)), default=0.0)
        except BracketsTooDeepError:
            yield Violation(
                field=name,
                reason="TOO_DEEP",
                description=f"{name} has brackets within more than {MAX_DEPTH} others",
            )
        else:
            if heaviest > MAX_WEIGHT:
                allowed = f"-{MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
                yield Violation(
                    field=name,
                    reason="OUT_OF_RANGE",
                    description=f"{name} has a part that weighs {heaviest:g}; allowed: {allowed}",
                )
