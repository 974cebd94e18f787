"""The engine's inbox: the event loop puts new generations in, the device thread takes them out.

``put``, ``put_errand``, ``wake`` and ``stop`` may be called on any thread and never wait for the
device; ``take``, ``take_errand``, ``wait`` and ``close`` belong to the device thread.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentwire_server.engine.handover.device_task import Errand
    from latentwire_server.engine.handover.generation import Generation


class Inbox:
    """Where the event loop leaves work for the device thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._arrivals: list[Generation] = []
        self._errands: deque[Errand[Any]] = deque()
        self._is_closed = False
        self._has_news = False
        self._is_stopped = False

    @property
    def is_stopped(self) -> bool:
        """Whether the device thread shall end."""
        return self._is_stopped

    def put(self, generation: Generation) -> None:
        """Leaves a new generation."""
        with self._condition:
            self._arrivals.append(generation)
            self._has_news = True
            self._condition.notify()

    def put_errand(self, errand: Errand[Any]) -> None:
        """Leaves an errand; it is cancelled if the device thread has ended, or when it does."""
        with self._condition:
            if not self._is_closed:
                self._errands.append(errand)
                self._has_news = True
                self._condition.notify()
                return
        errand.cancel()

    def wake(self) -> None:
        """Makes the device thread look at its generations again: one of them ended."""
        with self._condition:
            self._has_news = True
            self._condition.notify()

    def stop(self) -> None:
        """Makes the device thread end after the call that it is in."""
        with self._condition:
            self._is_stopped = True
            self._condition.notify()

    def take(self) -> list[Generation]:
        """Returns what arrived since the last time, in order."""
        with self._condition:
            self._has_news = False
            arrivals, self._arrivals = self._arrivals, []
            return arrivals

    def take_errand(self) -> Errand[Any] | None:
        """Returns the errand that waits longest."""
        with self._condition:
            return self._errands.popleft() if self._errands else None

    def close(self) -> None:
        """Cancels the errands that are left, and those to come."""
        with self._condition:
            self._is_closed = True
            left = list(self._errands)
            self._errands.clear()
        for errand in left:
            errand.cancel()

    def wait(self) -> None:
        """Sleeps until there is news or the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._has_news or self._is_stopped)
