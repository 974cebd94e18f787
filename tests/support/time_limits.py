"""Time limits of the tests, for machines of any speed.

A limit only ends a test that hangs; no test waits for it. ``LATENTWIRE_TEST_TIME_SCALE=3`` makes
every limit three times as long, for a slow or busy machine.
"""

from __future__ import annotations

import os
from typing import Final

SCALE: Final = float(os.environ.get("LATENTWIRE_TEST_TIME_SCALE", "1"))


def scaled(seconds: float) -> float:
    """Returns a limit in seconds, scaled for this machine."""
    return seconds * SCALE
