"""Threads that load models beside the device thread.

They are daemons, unlike those of a pool: a library in the middle of a load must not hold up the end
of the process. On Linux they run at a lower priority, so that reading weights slows down the steps
of running generations as little as possible.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

ResultT = TypeVar("ResultT")

_NICENESS: Final = 10
_MAX_NICENESS: Final = 19


async def in_loading_thread(work: Callable[[], ResultT]) -> ResultT:
    """Runs ``work`` in a thread of its own, and returns its result or raises its error."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ResultT] = loop.create_future()

    def settle(set_outcome: Callable[[], None]) -> None:
        if not future.done():
            set_outcome()

    def run() -> None:
        _lower_priority()
        try:
            set_outcome = partial(future.set_result, work())
        except Exception as error:
            set_outcome = partial(future.set_exception, error)
        # On a closed event loop, nothing waits for the result.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, set_outcome)

    threading.Thread(target=run, name="latentwire-load", daemon=True).start()
    return await future


def _lower_priority() -> None:
    """Lowers this thread's priority on Linux; elsewhere it would be that of the whole process."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _MAX_NICENESS))
