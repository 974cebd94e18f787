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

    from latentwire_server.models.info import ModelInfo
    from latentwire_server.requests.draft import RequestDraft
    from latentwire_server.requests.refused_words import RefusedWords


def prompt_violations(
    draft: RequestDraft, info: ModelInfo, *, refused_words: RefusedWords | None
) -> Iterator[Violation]:
    """Yields what is wrong with the prompts."""
    # With a source image, a prompt is optional.
    if not draft.prompt.strip() and draft.source is None:
        yield Violation(
            field="prompt",
            reason="REQUIRED",
            description="prompt is empty; needed: what to generate",
        )
    most = info.limits.max_prompt_bytes
    prompts = {"prompt": draft.prompt, "negative_prompt": draft.negative_prompt}
    for name, text in prompts.items():
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > most:
            yield Violation(
                field=name,
                reason="TOO_LONG",
                description=f"{name} is {size} bytes long; allowed: {most}",
            )
    # Searching takes time: prompts that are far too long are not searched.
    if max(map(len, prompts.values())) <= most:
        if refused_words is not None:
            yield from _refused_words(draft.prompt, info, refused_words)
        if PROMPT_WEIGHTING in info.capabilities:
            for name, text in prompts.items():
                yield from _weights(name, text)


def _refused_words(prompt: str, info: ModelInfo, words: RefusedWords) -> Iterator[Violation]:
    found = words.found_in(prompt) or words.found_in(_without_weights(prompt, info))
    if found is not None:
        yield Violation(
            field="prompt",
            reason="PROMPT_REFUSED",
            description=f"the operator of this server does not allow images of {quoted(found)}",
        )


def _without_weights(prompt: str, info: ModelInfo) -> str:
    """Returns a prompt without the notation of weights, which may split a word."""
    if PROMPT_WEIGHTING not in info.capabilities:
        return prompt
    try:
        return "".join(part.text for part in weighted_texts(prompt))
    except BracketsTooDeepError:
        return prompt


def _weights(name: str, text: str) -> Iterator[Violation]:
    try:
        heaviest = max((abs(part.weight) for part in weighted_texts(text)), default=0.0)
    except BracketsTooDeepError:
        yield Violation(
            field=name,
            reason="TOO_DEEP",
            description=f"{name} nests brackets more than {MAX_DEPTH} deep",
        )
        return
    if heaviest > MAX_WEIGHT:
        yield Violation(
            field=name,
            reason="OUT_OF_RANGE",
            description=f"{name} has a part that weighs {heaviest:g};"
            f" allowed: -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}",
        )
