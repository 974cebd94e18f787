"""The high-resolution fix of a request on its way in: whether there is one, and its first pass.

Pure: no gRPC, no protobuf, no torch, no clock, no randomness. Any thread.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from latentwire_server.engine.errors import Violation
from latentwire_server.engine.request import HighResolutionFix
from latentwire_server.models.info import HIGH_RESOLUTION_STRENGTH
from latentwire_server.requests.draft import HighResolutionFixDraft

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentwire_server.models.info import ModelInfo
    from latentwire_server.requests.draft import RequestDraft

FIXED_ABOVE: Final = 1.5
"""Times the model's own area: from here on a model repeats itself across the picture."""
_FIELD: Final = "high_resolution_fix"


def fix_violations(draft: RequestDraft, info: ModelInfo) -> Iterator[Violation]:
    """Yields what is wrong with what a caller wants of it."""
    wanted = draft.high_resolution_fix
    if wanted is None or wanted == HighResolutionFixDraft(is_disabled=True):
        return
    place, strength = f"{_FIELD}.strength", _strength(wanted, info)
    width, height, num_steps = _filled_in(draft, info)
    if wanted.is_disabled:
        yield _violation(place, "NOT_APPLICABLE", "says how strong what is disabled is")
    elif info.defaults.high_resolution_fix is None:
        yield _violation(_FIELD, "UNSUPPORTED_FIELD", f"cannot be had from the model {info.id}")
    elif draft.source is not None:
        yield _violation(_FIELD, "NOT_APPLICABLE", "is for drawings that start from noise")
    elif not (math.isfinite(strength) and 0 < strength <= 1):
        yield _violation(place, "OUT_OF_RANGE", f"is {strength:g}; allowed: above 0, up to 1")
    elif int(num_steps * strength) < 1 <= num_steps:
        needed = f"allowed: {1 / num_steps:.3g} and more"
        yield _violation(
            place, "NO_STEP_LEFT", f"is {strength:g}, which leaves none of {num_steps}; {needed}"
        )
    elif width * height <= _native_area(info):
        defaults = info.defaults
        yield _violation(
            _FIELD,
            "NOT_APPLICABLE",
            f"is for more than the model's own {defaults.width}x{defaults.height}",
        )


def fix_of(draft: RequestDraft, info: ModelInfo) -> HighResolutionFix | None:
    """Returns the fix of a draft without violations: the one that it wants, or the model's."""
    wanted, usual = draft.high_resolution_fix, info.defaults.high_resolution_fix
    width, height, num_steps = _filled_in(draft, info)
    if usual is None or draft.source is not None:
        return None
    if wanted is None:
        is_large = width * height > FIXED_ABOVE * _native_area(info)
        # Few steps may be too few for a second pass.
        if not is_large or int(num_steps * usual) < 1:
            return None
        wanted = HighResolutionFixDraft(strength=usual)
    if wanted.is_disabled:
        return None
    scale = math.sqrt(_native_area(info) / (width * height))
    return HighResolutionFix(
        width=_first_side(width, scale, info),
        height=_first_side(height, scale, info),
        strength=_strength(wanted, info),
    )


def _strength(wanted: HighResolutionFixDraft, info: ModelInfo) -> float:
    """Returns how much is drawn over, as the caller wrote it: the wire rounds 0.7 down."""
    if wanted.strength is None:
        return info.defaults.high_resolution_fix or HIGH_RESOLUTION_STRENGTH
    return float(str(np.float32(wanted.strength)))


def _filled_in(draft: RequestDraft, info: ModelInfo) -> tuple[int, int, int]:
    """Returns width, height and steps."""
    given = (draft.width, draft.height, draft.num_inference_steps)
    defaults = (info.defaults.width, info.defaults.height, info.defaults.num_inference_steps)
    width, height, num_steps = (
        default if value is None else value for value, default in zip(given, defaults, strict=True)
    )
    return width, height, num_steps


def _native_area(info: ModelInfo) -> int:
    return info.defaults.width * info.defaults.height


def _first_side(side: int, scale: float, info: ModelInfo) -> int:
    multiple = info.limits.side_multiple
    return max(info.limits.min_side, round(side * scale / multiple) * multiple)


def _violation(field: str, reason: str, what: str) -> Violation:
    return Violation(field=field, reason=reason, description=f"{field} {what}")
