"""The rules for requests, by topic: a draft and a model's limits give all violations at once.

Pure: no gRPC, no protobuf, no torch, no clock, no randomness. Any thread.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Final

from latentwire_server.engine.errors import Violation, out_of_range, quoted, ranged
from latentwire_server.engine.request import ImageFormat
from latentwire_server.requests.decimal_rules import scale_violations
from latentwire_server.requests.high_resolution import fix_violations
from latentwire_server.requests.lora_rules import lora_violations
from latentwire_server.requests.prompt_rules import prompt_violations
from latentwire_server.requests.scheduler_rules import scheduler_violations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentwire_server.models.info import ModelInfo, ModelLimits
    from latentwire_server.requests.draft import RequestDraft
    from latentwire_server.requests.image_size import ImageSize
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
    draft: RequestDraft,
    size: ImageSize,
    info: ModelInfo,
    *,
    refused_words: RefusedWords | None = None,
) -> tuple[Violation, ...]:
    """Returns everything that is wrong with a draft, but for its files."""
    return tuple(
        chain(
            _unsupported(draft),
            prompt_violations(draft, info, refused_words=refused_words),
            size.violations,
            _sampling(draft, info.limits),
            _refining(draft, info),
            fix_violations(draft, size, info),
            scheduler_violations(draft, info),
            lora_violations(draft.loras, info),
            _output(draft),
            _events(draft),
            _repeating(draft),
            _accounting(draft),
        )
    )


def canonical_uuid(text: str) -> str | None:
    """Returns a UUID in the form in which ids are compared; None if it is not a UUID."""
    return text.lower() if _UUID.fullmatch(text) else None


def _unsupported(draft: RequestDraft) -> Iterator[Violation]:
    for name in draft.unsupported_fields:
        yield Violation(
            field=name,
            reason="UNSUPPORTED_FIELD",
            description=f"{name} is not supported by this version; leave it unset",
        )
    for name, number in draft.unknown_enums:
        yield Violation(
            field=name, reason="UNKNOWN_VALUE", description=f"{name} has no value number {number}"
        )


def _sampling(draft: RequestDraft, limits: ModelLimits) -> Iterator[Violation]:
    yield from ranged("num_images", draft.num_images, 1, limits.max_images)
    yield from ranged("seed", draft.seed, 0, MAX_SEED)
    yield from ranged(
        "num_inference_steps", draft.num_inference_steps, 1, limits.max_inference_steps
    )
    yield from ranged("clip_skip", draft.clip_skip, 0, limits.max_clip_skip)
    if draft.guidance_scale is not None:
        yield from scale_violations(
            "guidance_scale", draft.guidance_scale, low=0, high=limits.max_guidance_scale
        )


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


def _output(draft: RequestDraft) -> Iterator[Violation]:
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


def _events(draft: RequestDraft) -> Iterator[Violation]:
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
            description=f"label {quoted(key)}: {quoted(value)} is not 1 to"
            f" {MAX_LABEL_CHARACTERS} printable characters",
        )


def _repeating(draft: RequestDraft) -> Iterator[Violation]:
    if canonical_uuid(draft.request_id) is not None:
        return
    if draft.request_id:
        yield Violation(
            field="request_id",
            reason="NOT_A_UUID",
            description=f"request_id {quoted(draft.request_id)} is not a UUID;"
            " needed: 32 hexadecimal digits in groups of 8-4-4-4-12",
        )
    if draft.goes_on_alone:
        yield Violation(
            field="disconnect_policy",
            reason="NEEDS_REQUEST_ID",
            description="disconnect_policy CONTINUE needs a request_id to return with",
        )
    if draft.resume_after_sequence:
        yield Violation(
            field="resume_after_sequence",
            reason="NEEDS_REQUEST_ID",
            description="resume_after_sequence needs the request_id of the generation to resume",
        )


def _is_label(text: str) -> bool:
    return len(text) <= MAX_LABEL_CHARACTERS and text.isprintable()
