"""Threads in which models are loaded, beside the device thread.

Daemons, unlike a pool's: a library in the middle of a load must not hold up the end of the process.
They give way to the device thread where the system knows how: reading weights shall cost the steps
of running generations as little as can be.
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

_POLITENESS: Final = 10
_MOST_POLITE: Final = 19


async def in_loading_thread(work: Callable[[], ResultT]) -> ResultT:
    """Returns the result of ``work``, or raises its error."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ResultT] = loop.create_future()

    def settle(settles: Callable[[], None]) -> None:
        if not future.done():
            settles()

    def tell(settles: Callable[[], None]) -> None:
        # A closed event loop means that nobody is left who could care.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, settles)

    def run() -> None:
        _give_way()
        try:
            result = work()
        except Exception as error:
            tell(partial(future.set_exception, error))
        else:
            tell(partial(future.set_result, result))

    threading.Thread(target=run, name="latentwire-load", daemon=True).start()
    return await future


def _give_way() -> None:
    """Lowers this thread's priority; elsewhere than on Linux that would be the whole process's."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        politeness = os.getpriority(os.PRIO_PROCESS, thread) + _POLITENESS
        os.setpriority(os.PRIO_PROCESS, thread, min(politeness, _MOST_POLITE))
