"""The channel of one generation: the device thread publishes, the servicer iterates.

Its guarantees:

* ``accepted``, ``image`` and ``completed`` all arrive, in order. An unread ``queued``,
  ``model_loading``, ``progress`` or ``preview`` (one slot per image) is replaced by a newer one: a
  slow reader costs one event of each kind, whatever the speed of the device.
* A failure ends the stream. Lossless events published before it are delivered first; events
  published after it are dropped.
* Closing from either side is idempotent. ``on_close`` is called once if the reader closes early, or
  reads nothing for ``send_timeout_s`` while events wait.
* Publishing never waits for the reader, and has at most one call pending on the event loop.

``publish``, ``finish`` and ``fail`` may be called on any thread, everything else on the event loop.
"""

from __future__ import annotations

import contextlib
import threading
from asyncio import Event as AsyncioEvent
from typing import TYPE_CHECKING, assert_never

from latentwire_server.engine.errors import Cancelled, GenerationError, SlowReader
from latentwire_server.engine.events import (
    Accepted,
    Completed,
    Event,
    Image,
    ModelLoading,
    Preview,
    Progress,
    Queued,
)

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle
    from collections.abc import Callable

Slot = tuple[str, int]


class Channel:
    """Passes the events of one generation from the device thread to its one reader."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        *,
        send_timeout_s: float,
        on_close: Callable[[GenerationError], None],
    ) -> None:
        self._loop = loop
        self._send_timeout_s = send_timeout_s
        self._on_close = on_close
        self._lock = threading.Lock()
        # Insertion order is delivery order; a replaced event moves to the end.
        self._waiting: dict[Slot, Event] = {}
        self._is_ended = False
        self._is_closed = False
        self._error: GenerationError | None = None
        self._num_published = 0
        self._is_wake_pending = False
        self._has_news = AsyncioEvent()
        self._timer: TimerHandle | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the reader is gone. Any thread, and takes no lock."""
        return self._is_closed

    def publish(self, event: Event) -> None:
        """Puts ``event`` into its slot. Does nothing after the end."""
        with self._lock:
            if self._is_ended:
                return
            self._put(event)
        self._wake_reader()

    def finish(self, event: Completed) -> None:
        """Publishes the last event of a generation that succeeded."""
        with self._lock:
            if self._is_ended:
                return
            self._put(event)
            self._is_ended = True
        self._wake_reader()

    def fail(self, error: GenerationError) -> None:
        """Ends the stream with ``error``. Does nothing after the end."""
        with self._lock:
            if self._is_ended:
                return
            self._is_ended = True
            self._error = error
            self._waiting = {
                slot: event
                for slot, event in self._waiting.items()
                if isinstance(event, Accepted | Image | Completed)
            }
        self._wake_reader()

    async def receive(self) -> Event:
        """Returns the next event.

        Raises:
            GenerationError: The generation failed; raised once.
            StopAsyncIteration: There are no more events.
        """
        while True:
            with self._lock:
                event = self._waiting.pop(next(iter(self._waiting))) if self._waiting else None
                error, is_over = self._error, self._is_ended
                if event is None and is_over:
                    self._error = None
                self._has_news.clear()
            self._watch_reader()
            if event is not None:
                return event
            if is_over:
                raise error if error is not None else StopAsyncIteration
            await self._has_news.wait()

    def close(self) -> None:
        """Drops the waiting events and cancels the generation, because the reader is gone."""
        self._close(Cancelled())

    def _put(self, event: Event) -> None:
        slot = _slot(event, number=self._num_published)
        self._waiting.pop(slot, None)
        self._waiting[slot] = event
        self._num_published += 1

    def _wake_reader(self) -> None:
        with self._lock:
            if self._is_wake_pending:
                return
            self._is_wake_pending = True
        # When the event loop is closed, no reader is left.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        with self._lock:
            self._is_wake_pending = False
        self._has_news.set()
        if self._timer is None:
            self._watch_reader()

    def _watch_reader(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._timer = self._loop.call_later(self._send_timeout_s, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        self._close(SlowReader(send_timeout_s=self._send_timeout_s))

    def _close(self, reason: GenerationError) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            was_ended, self._is_ended = self._is_ended, True
            self._waiting.clear()
            self._error = reason if isinstance(reason, SlowReader) else None
        self._watch_reader()
        self._has_news.set()
        if not was_ended:
            self._on_close(reason)


def _slot(event: Event, *, number: int) -> Slot:
    match event:
        case Queued():
            return ("queued", 0)
        case ModelLoading():
            return ("model loading", 0)
        case Progress():
            return ("progress", 0)
        case Preview():
            return ("preview", event.image_index)
        case Accepted() | Image() | Completed():
            return ("lossless", number)
        case _:
            assert_never(event)
