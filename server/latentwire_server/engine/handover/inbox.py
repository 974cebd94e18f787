"""The inbox: the event loop puts new generations in, the device thread takes them out.

``put``, ``put_task``, ``wake`` and ``stop`` may be called on any thread and never wait for the
device; ``take``, ``take_task``, ``wait`` and ``close`` belong to the device thread. A *device task*
is work that belongs to no generation and is done between two ticks, such as one call of a model
that is being measured, or dropping a model.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentwire_server.engine.handover.generation import Generation

ResultT = TypeVar("ResultT")


class DeviceTask(Generic[ResultT]):
    """A piece of work and the future of its result."""

    def __init__(self, work: Callable[[], ResultT]) -> None:
        self._work = work
        self.result: Future[ResultT] = Future()
        """Cancelled if the device thread ends first."""

    def run(self) -> None:
        """Does the work, unless its future has been cancelled. Device thread."""
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            result = self._work()
        except Exception as error:  # Border: the device loop
            self.result.set_exception(error)
        else:
            self.result.set_result(result)


class Inbox:
    """Passes work from the event loop to the device thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._arrivals: list[Generation] = []
        self._tasks: deque[DeviceTask[Any]] = deque()
        self._is_closed = False
        self._has_news = False
        self._is_stopped = False

    @property
    def is_stopped(self) -> bool:
        """Whether the device thread shall end."""
        return self._is_stopped

    def put(self, generation: Generation) -> None:
        """Adds a new generation."""
        with self._condition:
            self._arrivals.append(generation)
            self._has_news = True
            self._condition.notify()

    def put_task(self, work: Callable[[], ResultT]) -> Future[ResultT]:
        """Adds a device task; its result is cancelled if the device thread ends before it runs."""
        task = DeviceTask(work)
        with self._condition:
            if not self._is_closed:
                self._tasks.append(task)
                self._has_news = True
                self._condition.notify()
                return task.result
        task.result.cancel()
        return task.result

    def wake(self) -> None:
        """Makes the device thread check its generations again, because one of them ended."""
        with self._condition:
            self._has_news = True
            self._condition.notify()

    def stop(self) -> None:
        """Makes the device thread end after its current call."""
        with self._condition:
            self._is_stopped = True
            self._condition.notify()

    def take(self) -> list[Generation]:
        """Returns the generations that have arrived since the last call, in order."""
        with self._condition:
            self._has_news = False
            arrivals, self._arrivals = self._arrivals, []
            return arrivals

    def take_task(self) -> DeviceTask[Any] | None:
        """Returns the oldest device task, if there is one."""
        with self._condition:
            return self._tasks.popleft() if self._tasks else None

    def close(self) -> None:
        """Cancels the device tasks that are left, and those that are put in later."""
        with self._condition:
            self._is_closed = True
            left = list(self._tasks)
            self._tasks.clear()
        for task in left:
            task.result.cancel()

    def wait(self) -> None:
        """Sleeps until there is news, or until the inbox is stopped."""
        with self._condition:
            self._condition.wait_for(lambda: self._has_news or self._is_stopped)
