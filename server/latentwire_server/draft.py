"""A request on its way in: what the caller gave, and how it becomes complete.

Pure: no gRPC, no protobuf, no torch, no clock, no randomness. Any thread, but for pictures: to open
them takes its time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from latentwire_server import validation
from latentwire_server.drawn_size import drawn_size
from latentwire_server.engine.errors import InvalidRequest
from latentwire_server.engine.types import (
    EventOptions,
    GenerationRequest,
    ImageFormat,
    OutputOptions,
    PreviewMethod,
)
from latentwire_server.high_resolution import HighResolutionFixDraft, fix_of
from latentwire_server.models.info import LoraChoice, SchedulerChoice
from latentwire_server.sources import SourceDraft, open_source, strength_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire_server.models.info import ModelDefaults, ModelInfo
    from latentwire_server.refused_words import RefusedWords


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraDraft:
    """An adapter that a caller wants, as it came."""

    id: str
    scale: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDraft:
    """What a caller asked for, as it came. None: not given."""

    model: str = ""
    prompt: str = ""
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    num_images: int | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler_id: str | None = None
    sigmas: str | None = None
    clip_skip: int | None = None
    high_noise_frac: float | None = None
    high_resolution_fix: HighResolutionFixDraft | None = None
    loras: tuple[LoraDraft, ...] = ()
    source: SourceDraft | None = None
    format: ImageFormat | None = None
    quality: int | None = None
    metadata_omitted: bool = False
    max_data_bytes: int | None = None
    progress_interval_steps: int | None = None
    preview_interval_steps: int | None = None
    preview_method: PreviewMethod | None = None
    preview_max_side: int | None = None
    priority: int = 0
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    goes_on_alone: bool = False
    """Whether it is drawn to its end when its caller is gone."""
    resume_after_sequence: int = 0
    unsupported_fields: tuple[str, ...] = ()
    """Fields of the contract that are set and that this server does not serve."""
    unknown_enums: tuple[tuple[str, int], ...] = ()
    """Fields with the number of an enum value that this server does not know."""

    def scheduler_choice(self, info: ModelInfo) -> SchedulerChoice:
        """Returns the sampler that is meant: given in full, in part, or the model's."""
        if self.scheduler_id is None and self.sigmas is None:
            return info.defaults.scheduler
        return SchedulerChoice(
            id=self.scheduler_id or info.defaults.scheduler.id, sigmas=self.sigmas or "default"
        )


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
