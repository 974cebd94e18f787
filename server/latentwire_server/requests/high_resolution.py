"""The high-resolution fix of a request: whether it applies, and the size of its first pass.

Pure; any thread.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from latentwire_server.engine.errors import Violation
from latentwire_server.engine.request import HighResolutionFix
from latentwire_server.models.info import HIGH_RESOLUTION_STRENGTH
from latentwire_server.requests.decimal_rules import strength_violations
from latentwire_server.requests.draft import HighResolutionFixDraft
from latentwire_server.requests.scheduler_rules import num_steps_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentwire_server.models.info import ModelInfo
    from latentwire_server.requests.draft import RequestDraft
    from latentwire_server.requests.image_size import ImageSize

FIXED_ABOVE: Final = 1.5
"""Times the model's own area: from here on a model repeats itself across the image."""
_FIELD: Final = "high_resolution_fix"


def fix_violations(draft: RequestDraft, size: ImageSize, info: ModelInfo) -> Iterator[Violation]:
    """Yields what is wrong with the fix that a caller asks for."""
    asked = draft.high_resolution_fix
    if asked is None or asked == HighResolutionFixDraft(is_disabled=True):
        return
    place, strength = f"{_FIELD}.strength", _strength(asked, info)
    defaults, num_steps = info.defaults, num_steps_of(draft, info)
    if asked.is_disabled:
        yield _violation(place, "NOT_APPLICABLE", "is set although the fix is disabled")
    elif defaults.high_resolution_fix is None:
        yield _violation(_FIELD, "UNSUPPORTED_FIELD", f"is not supported by the model {info.id}")
    elif draft.source is not None:
        yield _violation(_FIELD, "NOT_APPLICABLE", "is for images that start from noise")
    elif found := tuple(strength_violations(place, strength, num_steps=num_steps)):
        yield from found
    elif size.width * size.height <= _native_area(info):
        yield _violation(
            _FIELD,
            "NOT_APPLICABLE",
            f"is for images larger than the model's own {defaults.width}x{defaults.height}",
        )


def fix_of(draft: RequestDraft, size: ImageSize, info: ModelInfo) -> HighResolutionFix | None:
    """Returns the fix of a valid draft: the one that it asks for, or the model's."""
    asked, usual = draft.high_resolution_fix, info.defaults.high_resolution_fix
    if usual is None or draft.source is not None:
        return None
    area, native_area = size.width * size.height, _native_area(info)
    if asked is None:
        # Few steps may be too few for a second pass.
        if area <= FIXED_ABOVE * native_area or int(num_steps_of(draft, info) * usual) < 1:
            return None
        asked = HighResolutionFixDraft(strength=usual)
    if asked.is_disabled:
        return None
    scale, limits = math.sqrt(native_area / area), info.limits
    width, height = (
        max(limits.min_side, round(side * scale / limits.side_multiple) * limits.side_multiple)
        for side in (size.width, size.height)
    )
    return HighResolutionFix(width=width, height=height, strength=_strength(asked, info))


def _strength(asked: HighResolutionFixDraft, info: ModelInfo) -> float:
    if asked.strength is None:
        return info.defaults.high_resolution_fix or HIGH_RESOLUTION_STRENGTH
    return asked.strength


def _native_area(info: ModelInfo) -> int:
    return info.defaults.width * info.defaults.height


def _violation(field: str, reason: str, what: str) -> Violation:
    return Violation(field=field, reason=reason, description=f"{field} {what}")
