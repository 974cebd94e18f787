"""Work for the device thread that belongs to no generation, done between two ticks.

Such as one call to measure a model that is being loaded, or letting go of one. Made on any thread;
``run`` is the device thread's.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

ResultT = TypeVar("ResultT")


class DeviceTask(Generic[ResultT]):
    """One piece of work and the future of its result."""

    def __init__(self, work: Callable[[], ResultT]) -> None:
        """Takes what is to be done."""
        self._work = work
        self.result: Future[ResultT] = Future()
        """Cancelled if the device thread ends first."""

    def run(self) -> None:
        """Does it, unless nobody waits for it any more."""
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            result = self._work()
        except Exception as error:  # Border: the device loop
            self.result.set_exception(error)
        else:
            self.result.set_result(result)

    def cancel(self) -> None:
        """Tells whoever waits that it will not be done."""
        self.result.cancel()
