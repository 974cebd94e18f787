"""A device task: work for the device thread that belongs to no generation, done between two ticks.

Such as one call of a model that is being measured, or dropping a model. Created on any thread; run
on the device thread.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

ResultT = TypeVar("ResultT")


class DeviceTask(Generic[ResultT]):
    """A piece of work and the future of its result."""

    def __init__(self, work: Callable[[], ResultT]) -> None:
        self._work = work
        self.result: Future[ResultT] = Future()
        """Cancelled if the device thread ends first."""

    def run(self) -> None:
        """Does the work, unless its future has been cancelled."""
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            result = self._work()
        except Exception as error:  # Border: the device loop
            self.result.set_exception(error)
        else:
            self.result.set_result(result)
