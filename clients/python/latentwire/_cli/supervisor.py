"""Keeps child processes running, and ends them with this process. Event loop only.

No child outlives the supervisor: it is terminated in order, and Linux kills it if this process is
killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Final

from latentwire._services.process import START_UP_ERROR

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_FIRST_BACK_OFF_S: Final = 1.0
_LONGEST_BACK_OFF_S: Final = 30.0
_STEADY_AFTER_S: Final = 60.0
_PR_SET_PDEATHSIG: Final = 1


class Child:
    """A process that is restarted when it dies, unless it never became ready."""

    def __init__(self, name: str, argv: Sequence[str], *, log: Callable[[str], None]) -> None:
        self.name = name
        self.argv = tuple(argv)
        """The command line of the next start."""
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._has_been_ready = False

    def mark_ready(self) -> None:
        """Records that the process became ready: from now on it is restarted when it dies."""
        self._has_been_ready = True

    async def keep_running(self) -> int:
        """Runs the process until it is stopped or fails to start; returns its last exit status."""
        back_off_s = _FIRST_BACK_OFF_S
        while True:
            started_at = time.monotonic()
            status = await self._run_once()
            # A restart would not change an invalid setting.
            if self._stopping.is_set() or status == START_UP_ERROR or not self._has_been_ready:
                return status
            if time.monotonic() - started_at > _STEADY_AFTER_S:
                back_off_s = _FIRST_BACK_OFF_S
            self._log(
                f"the {self.name} ended with status {status}; restarting it in {back_off_s:g} s"
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(back_off_s):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return status
            back_off_s = min(2 * back_off_s, _LONGEST_BACK_OFF_S)

    def terminate(self) -> None:
        """Asks the process to finish its work and exit."""
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the process."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    async def _run_once(self) -> int:
        # A session of its own: Ctrl-C reaches only the supervisor, which then signals each child.
        self._process = await asyncio.create_subprocess_exec(
            *self.argv,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        try:
            return await self._process.wait()
        finally:
            if self._process.returncode is None:
                self.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def _die_with(parent: int) -> Callable[[], None] | None:
    """Returns a hook for a new child that has Linux kill it when its parent dies."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def request_kill() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return request_kill
