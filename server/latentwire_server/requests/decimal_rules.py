"""Rules for decimals: scales, and strengths, the shares of the steps that are taken.

Pure; any thread.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from latentwire_server.engine.errors import Violation, out_of_range

if TYPE_CHECKING:
    from collections.abc import Iterator


def scale_violations(field: str, scale: float, *, low: float, high: float) -> Iterator[Violation]:
    """Yields a violation if a scale is not finite or out of range."""
    allowed = f"{low:g} to {high:g}"
    if not math.isfinite(scale):
        yield Violation(
            field=field, reason="NOT_FINITE", description=f"{field} is {scale}; allowed: {allowed}"
        )
    elif not low <= scale <= high:
        yield out_of_range(field, scale, allowed)


def strength_violations(field: str, strength: float, *, num_steps: int) -> Iterator[Violation]:
    """Yields a violation if a strength is out of range or leaves no step to take."""
    if not (math.isfinite(strength) and 0 < strength <= 1):
        yield Violation(
            field=field,
            reason="OUT_OF_RANGE",
            description=f"{field} is {strength:g}; allowed: above 0, up to 1",
        )
    elif int(num_steps * strength) < 1 <= num_steps:
        yield Violation(
            field=field,
            reason="NO_STEP_LEFT",
            description=f"{field} is {strength:g}, which leaves none of {num_steps} steps;"
            f" allowed: {math.ceil(1000 / num_steps) / 1000:g} and more",
        )
