"""From a draft to the request that the engine runs, in four steps.

Open the sources, settle the size, check everything, fill in what is not given. Takes milliseconds,
and with images more: not for the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final, TypeVar

from latentwire_server.engine.errors import InvalidRequest
from latentwire_server.engine.request import EventOptions, GenerationRequest, OutputOptions
from latentwire_server.requests.high_resolution import fix_of
from latentwire_server.requests.image_size import settle_size
from latentwire_server.requests.model_rules import mask_violations, steps_violations
from latentwire_server.requests.scheduler_rules import (
    num_steps_of,
    scheduler_of,
)
from latentwire_server.requests.source_images import open_source
from latentwire_server.requests.validation import violations

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from latentwire_server.engine.request import Source
    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.protocol import ModelSpec
    from latentwire_server.requests.draft import RequestDraft
    from latentwire_server.requests.image_size import ImageSize
    from latentwire_server.requests.refused_words import RefusedWords
    from latentwire_server.requests.source_images import OpenedSource

OptionsT = TypeVar("OptionsT", OutputOptions, EventOptions)

_DECIDING_STEPS: Final = {"scheduler.id", "scheduler.sigmas", "num_inference_steps"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """What the server adds to a caller's request; the fields of a ``GenerationRequest``."""

    generation_id: str
    owner: str
    seed: int
    """Used if the caller gives none."""
    deadline: float | None = None


def complete(
    draft: RequestDraft,
    model: ModelSpec,
    info: ModelInfo,
    *,
    assigned: Assigned,
    refused_words: RefusedWords | None = None,
) -> GenerationRequest:
    """Returns the valid request, without gaps, that a draft asks for.

    Args:
        draft: What the caller sent.
        model: Has rules of its own.
        info: The model's description, with the operator's limits.
        assigned: What the server adds.
        refused_words: Words that no prompt may have.

    Raises:
        InvalidRequest: The draft breaks rules; every one of them is listed.
    """
    opened = open_source(draft.source, info, num_steps=num_steps_of(draft, info))
    size = settle_size(draft, opened.image, info)
    mask = opened.cut_mask(size)
    _check(draft, model, info, opened=opened, size=size, mask=mask, refused_words=refused_words)
    source = opened.cut_to(size, mask=mask)
    return _fill_in(draft, info, size=size, source=source, assigned=assigned)


def _check(
    draft: RequestDraft,
    model: ModelSpec,
    info: ModelInfo,
    *,
    opened: OpenedSource,
    size: ImageSize,
    mask: NDArray[np.uint8] | None,
    refused_words: RefusedWords | None,
) -> None:
    found = [
        *opened.violations,
        *violations(draft, size, info, refused_words=refused_words),
    ]
    if mask is not None:
        found += mask_violations(mask, size, model)
    # The model cannot judge steps that are invalid already.
    if _DECIDING_STEPS.isdisjoint(violation.field for violation in found):
        found += steps_violations(draft, info, model)
    if found:
        raise InvalidRequest(tuple(found))


def _fill_in(
    draft: RequestDraft,
    info: ModelInfo,
    *,
    size: ImageSize,
    source: Source | None,
    assigned: Assigned,
) -> GenerationRequest:
    """Fills fields by their name: from the draft, else what is assigned, else the model's defaults.

    A field that none of them has keeps the default of ``GenerationRequest``. Only the fields that
    are derived are listed here.
    """
    by_name = {
        field.name: value
        for giver in (info.defaults, assigned, draft)
        for field in fields(GenerationRequest)
        if (value := getattr(giver, field.name, None)) is not None
    }
    width, height = size.generated
    fix = draft.high_resolution_fix
    settled = {
        "model": info.id,
        "width": width,
        "height": height,
        "delivered_size": None if size.generated == size.delivered else size.delivered,
        "scheduler": scheduler_of(draft, info),
        "guidance_is_embedded": info.guidance_is_embedded,
        "high_resolution_fix": fix_of(draft, size, info),
        "high_resolution_fix_disabled": fix is not None and fix.is_disabled,
        "source": source,
        "output": _options(OutputOptions(), draft),
        "events": _options(EventOptions(), draft),
    }
    return GenerationRequest(**{**by_name, **settled})


def _options(defaults: OptionsT, draft: RequestDraft) -> OptionsT:
    given = {field.name: getattr(draft, field.name) for field in fields(defaults)}
    return replace(defaults, **{name: one for name, one in given.items() if one is not None})
