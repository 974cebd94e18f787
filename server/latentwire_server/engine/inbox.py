"""The engine's inbox: the event loop puts new generations in, the device thread takes them out.

``put``, ``wake`` and ``stop`` may be called on any thread and never wait for the device; ``take``
and ``wait`` belong to the device thread.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentwire_server.engine.generation import Generation


class Inbox:
    """Where the event loop leaves work for the device thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._arrivals: list[Generation] = []
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

    def wait(self) -> None:
        """Sleeps until there is news or the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._has_news or self._is_stopped)
