"""How a draft becomes complete: sources opened, size settled, rules checked, gaps filled in.

Pure but for the caller's files, which are opened here: on any thread but the event loop's.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from latentwire_server.engine.errors import InvalidRequest, Violation
from latentwire_server.engine.request import (
    EventOptions,
    GenerationRequest,
    OutputOptions,
)
from latentwire_server.models.info import LoraChoice
from latentwire_server.requests import validation
from latentwire_server.requests.drawn_size import drawn_size
from latentwire_server.requests.high_resolution import fix_of
from latentwire_server.requests.request_warnings import warnings_of
from latentwire_server.requests.source_images import mask_violation, open_source, strength_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentwire_server.engine import events
    from latentwire_server.models.info import ModelDefaults, ModelInfo
    from latentwire_server.models.protocol import ModelSpec
    from latentwire_server.requests.draft import LoraDraft, RequestDraft
    from latentwire_server.requests.refused_words import RefusedWords


def examined(
    complete_: Callable[[], GenerationRequest], model: ModelSpec
) -> tuple[GenerationRequest, tuple[events.Warning, ...]]:
    """Returns the request and what its caller should know about it, asking the model itself.

    Takes milliseconds, and with pictures more: not for the event loop.

    Raises:
        InvalidRequest: it breaks rules, or some that only the model knows: its sampler cannot take
            that many steps, or nothing of its latents lies in the mask.
    """
    request = complete_()
    found = [
        one for one in (_steps_violation(request, model), _mask_violation(request, model)) if one
    ]
    if found:
        raise InvalidRequest(tuple(found))
    return request, warnings_of(request, model)


def _steps_violation(request: GenerationRequest, model: ModelSpec) -> Violation | None:
    choice, num_steps = request.scheduler, request.num_inference_steps
    try:
        model.create_scheduler(choice, num_inference_steps=num_steps)
    except ValueError:
        return Violation(
            field="num_inference_steps",
            reason="UNSUPPORTED_STEPS",
            description=f"scheduler {choice.id} with sigmas {choice.sigmas}"
            f" cannot take {num_steps} steps",
        )
    return None


def _mask_violation(request: GenerationRequest, model: ModelSpec) -> Violation | None:
    if request.source is None:
        return None
    _, *latent_size = model.latent_shape(width=request.width, height=request.height)
    return mask_violation(request.source, latent_size=latent_size)


def complete(
    draft: RequestDraft,
    info: ModelInfo,
    *,
    generation_id: str,
    owner: str,
    random_seed: int,
    deadline: float | None = None,
    refused_words: RefusedWords | None = None,
) -> GenerationRequest:
    """Fills a draft's gaps with the model's defaults.

    Raises:
        InvalidRequest: the draft breaks rules; every one of them is named.
    """
    defaults = info.defaults
    num_inference_steps = _given(draft.num_inference_steps, defaults.num_inference_steps)
    opened = None
    if draft.source is not None:
        opened = open_source(draft.source, info, num_inference_steps=num_inference_steps)
        draft = opened.size_filled_in(draft, info)
    found = validation.violations(draft, info, refused_words=refused_words)
    if opened is not None:
        found = (*opened.violations, *found)
    if found:
        raise InvalidRequest(found)
    fix = draft.high_resolution_fix
    width, height = _given(draft.width, defaults.width), _given(draft.height, defaults.height)
    delivered_size = width, height
    width, height = drawn_size(width, height, info)
    is_made_smaller = (width, height) != delivered_size
    source = None
    if opened is not None:
        strength = strength_of(opened.draft)
        source = opened.at_size(width=width, height=height, strength=strength)
        if source is not None and is_made_smaller:
            kept = opened.at_size(
                width=delivered_size[0], height=delivered_size[1], strength=strength
            )
            source = replace(source, delivered=kept)
    return GenerationRequest(
        generation_id=generation_id,
        owner=owner,
        model=info.id,
        prompt=draft.prompt,
        negative_prompt=draft.negative_prompt,
        width=width,
        height=height,
        delivered_size=delivered_size if is_made_smaller else None,
        num_images=_given(draft.num_images, 1),
        seed=_given(draft.seed, random_seed),
        num_inference_steps=num_inference_steps,
        guidance_scale=as_float32(
            defaults.guidance_scale if draft.guidance_scale is None else draft.guidance_scale
        ),
        scheduler=draft.scheduler_choice(info),
        clip_skip=_given(draft.clip_skip, 0),
        guidance_is_embedded=info.guidance_is_embedded,
        high_noise_frac=_high_noise_frac(draft, defaults),
        high_resolution_fix=fix_of(draft, info),
        high_resolution_fix_disabled=fix is not None and fix.is_disabled,
        loras=tuple(_lora(lora) for lora in draft.loras),
        source=source,
        output=_output(draft),
        events=_events(draft),
        priority=draft.priority,
        user=draft.user,
        labels=dict(draft.labels),
        deadline=deadline,
    )


def as_float32(value: float) -> float:
    """Rounds to what the wire can carry, so that an echoed request is the same request."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def _high_noise_frac(draft: RequestDraft, defaults: ModelDefaults) -> float | None:
    if defaults.high_noise_frac is None:
        return None
    given = draft.high_noise_frac
    return as_float32(defaults.high_noise_frac if given is None else given)


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _lora(draft: LoraDraft) -> LoraChoice:
    return LoraChoice(id=draft.id, scale=as_float32(1.0 if draft.scale is None else draft.scale))


def _output(draft: RequestDraft) -> OutputOptions:
    plain = OutputOptions()
    return OutputOptions(
        format=draft.format or plain.format,
        quality=_given(draft.quality, plain.quality),
        metadata_omitted=draft.metadata_omitted,
        max_data_bytes=_given(draft.max_data_bytes, plain.max_data_bytes),
    )


def _events(draft: RequestDraft) -> EventOptions:
    plain = EventOptions()
    return EventOptions(
        progress_interval_steps=_given(
            draft.progress_interval_steps, plain.progress_interval_steps
        ),
        preview_interval_steps=_given(draft.preview_interval_steps, plain.preview_interval_steps),
        preview_method=draft.preview_method or plain.preview_method,
        preview_max_side=_given(draft.preview_max_side, plain.preview_max_side),
    )
