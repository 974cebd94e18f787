"""What a request may ask for: a draft and a model's limits give all violations at once.

Pure: no gRPC, no protobuf, no torch, no clock, no randomness. Any thread.
"""

from __future__ import annotations

import math
import re
from itertools import chain
from typing import TYPE_CHECKING, Final

from latentwire_server.engine.errors import Violation, out_of_range, quoted, ranged
from latentwire_server.engine.request import ImageFormat
from latentwire_server.requests.high_resolution import fix_violations
from latentwire_server.requests.lora_rules import _lora_violations
from latentwire_server.requests.prompt_rules import _prompts, _words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentwire_server.models.info import ModelInfo, ModelLimits
    from latentwire_server.requests.draft import RequestDraft
    from latentwire_server.requests.refused_words import RefusedWords

MIN_DATA_BYTES: Final = 65_536
MAX_DATA_BYTES: Final = 4_000_000
MAX_SEED: Final = 2**63 - 1
MAX_PRIORITY: Final = 100
MAX_INTERVAL_STEPS: Final = 1_000
MIN_PREVIEW_SIDE: Final = 16
MAX_PREVIEW_SIDE: Final = 2_048
MAX_USER_BYTES: Final = 64
MAX_LABELS: Final = 16
MAX_LABEL_CHARACTERS: Final = 64
MAX_QUALITY: Final = 100

_UUID: Final = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def violations(
    draft: RequestDraft, info: ModelInfo, *, refused_words: RefusedWords | None = None
) -> tuple[Violation, ...]:
    """Returns everything that is wrong with a draft."""
    return tuple(
        chain(
            _unserved(draft),
            _prompts(draft, info.limits),
            _words(draft, info, refused_words),
            _size(draft, info),
            _sampling(draft, info.limits),
            _refining(draft, info),
            fix_violations(draft, info),
            _scheduler_violations(draft, info),
            _lora_violations(draft, info),
            _output_violations(draft),
            _events_violations(draft),
            _repeating(draft),
            _accounting(draft),
        )
    )


def canonical_uuid(text: str) -> str | None:
    """Returns a UUID in the one form in which it is compared; None if it is none."""
    return text.lower() if _UUID.fullmatch(text) else None


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _unserved(draft: RequestDraft) -> Iterator[Violation]:
    for name in draft.unsupported_fields:
        yield Violation(
            field=name,
            reason="UNSUPPORTED_FIELD",
            description=f"{name} is not served by this version; leave it unset",
        )
    for name, number in draft.unknown_enums:
        yield Violation(
            field=name, reason="UNKNOWN_VALUE", description=f"{name} has no value number {number}"
        )


def _size(draft: RequestDraft, info: ModelInfo) -> Iterator[Violation]:
    limits = info.limits
    sides = {"width": draft.width, "height": draft.height}
    found = [
        violation
        for name, side in sides.items()
        if side is not None and (violation := _side(name, side, limits))
    ]
    yield from found
    width = _given(draft.width, info.defaults.width)
    height = _given(draft.height, info.defaults.height)
    if not found and width * height > limits.max_pixels:
        yield Violation(
            field="width" if draft.width is not None else "height",
            reason="TOO_LARGE",
            description=f"{width}x{height} is {width * height} pixels;"
            f" allowed: {limits.max_pixels}",
        )


def _side(name: str, side: int, limits: ModelLimits) -> Violation | None:
    step = limits.side_multiple
    if not limits.min_side <= side <= limits.max_side:
        return out_of_range(name, side, f"{limits.min_side} to {limits.max_side} by {step}")
    if side % step == 0:
        return None
    below = side // step * step
    works = [near for near in (below, below + step) if limits.min_side <= near <= limits.max_side]
    nearest = " and ".join(str(near) for near in works)
    return Violation(
        field=name,
        reason="NOT_A_MULTIPLE",
        description=f"{name} {side} is no multiple of {step}; the nearest that work: {nearest}",
    )


def _sampling(draft: RequestDraft, limits: ModelLimits) -> Iterator[Violation]:
    yield from ranged("num_images", draft.num_images, 1, limits.max_images)
    yield from ranged("seed", draft.seed, 0, MAX_SEED)
    yield from ranged(
        "num_inference_steps", draft.num_inference_steps, 1, limits.max_inference_steps
    )
    yield from ranged("clip_skip", draft.clip_skip, 0, limits.max_clip_skip)
    guidance = draft.guidance_scale
    if guidance is None:
        return
    if not math.isfinite(guidance):
        yield Violation(
            field="guidance_scale",
            reason="NOT_FINITE",
            description=f"guidance_scale is {guidance};"
            f" allowed: 0 to {limits.max_guidance_scale:g}",
        )
    elif not 0 <= guidance <= limits.max_guidance_scale:
        yield out_of_range("guidance_scale", guidance, f"0 to {limits.max_guidance_scale:g}")


def _refining(draft: RequestDraft, info: ModelInfo) -> Iterator[Violation]:
    share = draft.high_noise_frac
    if share is None:
        return
    if info.defaults.high_noise_frac is None:
        yield Violation(
            field="high_noise_frac",
            reason="UNSUPPORTED_FIELD",
            description=f"the model {info.id} has no refiner; leave high_noise_frac unset",
        )
    elif not 0 < share <= 1:
        yield out_of_range("high_noise_frac", share, "above 0, up to 1")


def _scheduler_violations(draft: RequestDraft, info: ModelInfo) -> Iterator[Violation]:
    choice = draft.scheduler_choice(info)
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
    steps = _given(draft.num_inference_steps, info.defaults.num_inference_steps)
    most = scheduler.max_inference_steps
    # Beyond the model's own limit it is out of range already.
    if most is not None and most < steps <= info.limits.max_inference_steps:
        yield Violation(
            field="num_inference_steps",
            reason="UNSUPPORTED_STEPS",
            description=f"scheduler {scheduler.id} cannot take {steps} steps; allowed: 1 to {most}",
        )


def _output_violations(draft: RequestDraft) -> Iterator[Violation]:
    is_png = (draft.format or ImageFormat.PNG) is ImageFormat.PNG
    if is_png and draft.quality is not None:
        yield Violation(
            field="output.quality",
            reason="NOT_APPLICABLE",
            description="PNG is lossless and takes no quality; leave it unset or ask for JPEG",
        )
    else:
        yield from ranged("output.quality", draft.quality, 1, MAX_QUALITY)
    yield from ranged("output.max_data_bytes", draft.max_data_bytes, MIN_DATA_BYTES, MAX_DATA_BYTES)


def _events_violations(draft: RequestDraft) -> Iterator[Violation]:
    yield from ranged(
        "events.progress_interval_steps", draft.progress_interval_steps, 1, MAX_INTERVAL_STEPS
    )
    yield from ranged(
        "events.preview_interval_steps", draft.preview_interval_steps, 0, MAX_INTERVAL_STEPS
    )
    yield from ranged(
        "events.preview_max_side", draft.preview_max_side, MIN_PREVIEW_SIDE, MAX_PREVIEW_SIDE
    )


def _accounting(draft: RequestDraft) -> Iterator[Violation]:
    yield from ranged("priority", draft.priority, -MAX_PRIORITY, MAX_PRIORITY)
    user_bytes = len(draft.user.encode("utf-8", "surrogatepass"))
    if user_bytes > MAX_USER_BYTES:
        yield Violation(
            field="user",
            reason="TOO_LONG",
            description=f"user is {user_bytes} bytes long; allowed: {MAX_USER_BYTES}",
        )
    if len(draft.labels) > MAX_LABELS:
        yield Violation(
            field="labels",
            reason="TOO_MANY",
            description=f"{len(draft.labels)} labels; allowed: {MAX_LABELS}",
        )
    bad = [pair for pair in draft.labels.items() if not (pair[0] and all(map(_is_label, pair)))]
    for key, value in bad[:MAX_LABELS]:
        yield Violation(
            field="labels",
            reason="BAD_LABEL",
            description=f"label {quoted(key)}: {quoted(value)} is not of 1 to"
            f" {MAX_LABEL_CHARACTERS} printable characters",
        )


def _repeating(draft: RequestDraft) -> Iterator[Violation]:
    if canonical_uuid(draft.request_id) is not None:
        return
    if draft.request_id:
        yield Violation(
            field="request_id",
            reason="NOT_A_UUID",
            description=f"request_id {quoted(draft.request_id)} is no UUID;"
            " needed: 32 hexadecimal digits in groups of 8-4-4-4-12",
        )
    if draft.goes_on_alone:
        yield Violation(
            field="disconnect_policy",
            reason="NEEDS_REQUEST_ID",
            description="disconnect_policy CONTINUE needs a request_id: nobody could come back",
        )
    if draft.resume_after_sequence:
        yield Violation(
            field="resume_after_sequence",
            reason="NEEDS_REQUEST_ID",
            description="resume_after_sequence needs the request_id of what is resumed",
        )


def _is_label(text: str) -> bool:
    return len(text) <= MAX_LABEL_CHARACTERS and text.isprintable()
