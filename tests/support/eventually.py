"""Waits until a condition holds, without a guess at how long that takes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S = 20.0
_PAUSE_S = 0.002


async def eventually(condition: Callable[[], object], *, timeout_s: float = TIMEOUT_S) -> None:
    """Returns as soon as ``condition()`` is true; fails the test if it does not become so."""
    give_up_at = time.monotonic() + scaled(timeout_s)
    while not condition():
        if time.monotonic() > give_up_at:
            message = f"not within {timeout_s} s: {condition}"
            raise AssertionError(message)
        await asyncio.sleep(_PAUSE_S)


def eventually_sync(condition: Callable[[], object], *, timeout_s: float = TIMEOUT_S) -> None:
    """Does the same by blocking the calling thread."""
    give_up_at = time.monotonic() + scaled(timeout_s)
    while not condition():
        if time.monotonic() > give_up_at:
            message = f"not within {timeout_s} s: {condition}"
            raise AssertionError(message)
        time.sleep(_PAUSE_S)
