"""Generations that can be repeated by their ``request_id``: a repeat joins the first one.

A recording collects a generation's messages as they come, read or not, and gives every reader all
of them from the first on. A generation that succeeded is remembered for a while; one that failed is
forgotten, so that a repeat starts a new one. Event loop only. Knows messages, not the engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from latentwire_server.engine.errors import (
    Cancelled,
    GenerationError,
    InvalidRequest,
    RequestIdReused,
    Violation,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from latentwire.v1 import image_generation_pb2 as pb

    Responses = AsyncGenerator[pb.GenerateImageResponse]

MAX_PREVIEW_BYTES: Final = 8 * 1024 * 1024
"""Of one recording; beyond it the oldest previews are dropped, as they are for a slow reader."""

Key = tuple[str, str]
"""A caller and a request id: callers cannot join each other's generations."""

_logger: Final = logging.getLogger(__name__)


class Recording:
    """The messages of one generation, and its readers."""

    def __init__(
        self,
        opening: Awaitable[Responses],
        *,
        fingerprint: bytes,
        unread_s: float,
        on_end: Callable[[], None],
        forget: Callable[[], None],
    ) -> None:
        """Starts to record.

        Args:
            opening: Returns the generation, whose closing cancels it.
            fingerprint: Of the request.
            unread_s: How long the generation continues without a reader.
            on_end: Called when the generation has ended, for whatever reason.
            forget: Called when the recording may no longer be joined.
        """
        self.fingerprint = fingerprint
        self.num_bytes = 0
        self.error: Exception | None = None
        self._unread_s = unread_s
        self._on_end = on_end
        self._forget = forget
        self._messages: list[pb.GenerateImageResponse] = []
        self._previews: deque[pb.GenerateImageResponse] = deque()
        self._num_preview_bytes = 0
        self._num_readers = 0
        self._is_ended = False
        self._news = asyncio.Event()
        self._unread_timer: asyncio.TimerHandle | None = None
        self._task = asyncio.create_task(self._record(opening))

    def check(self, after: int) -> None:
        """Checks that reading can resume after a message.

        Raises:
            InvalidRequest: There is no such message.
        """
        if 0 <= after <= len(self._messages):
            return
        violation = Violation(
            field="resume_after_sequence",
            reason="OUT_OF_RANGE",
            description=f"resume_after_sequence is {after}; allowed: 0 to {len(self._messages)},"
            " the last event so far",
        )
        raise InvalidRequest((violation,))

    async def read(self, *, after: int) -> Responses:
        """Yields the messages after number ``after``, including those to come.

        Raises:
            Exception: The generation failed with it.
        """
        self._num_readers += 1
        self._stop_timer()
        try:
            position = after
            while True:
                news = self._news
                while position < len(self._messages):
                    position += 1
                    yield self._messages[position - 1]
                if self._is_ended and position == len(self._messages):
                    if self.error is not None:
                        raise self.error
                    return
                await news.wait()
        finally:
            self._leave()

    def stop(self) -> None:
        """Cancels the generation; a repeat from now on starts another one."""
        self._forget()
        self._task.cancel()

    async def aclose(self) -> None:
        """Cancels the generation and waits for its end."""
        self.stop()
        await asyncio.wait([self._task])

    async def _record(self, opening: Awaitable[Responses]) -> None:
        try:
            async with aclosing(await opening) as responses:
                async for response in responses:
                    self._add(response)
        except asyncio.CancelledError:
            self.error = Cancelled()
            raise
        except Exception as error:  # Border: raised again for every reader
            self.error = error
            if not (self._num_readers or isinstance(error, GenerationError)):
                _logger.exception("unexpected error without a reader")
        finally:
            self._is_ended = True
            self._stop_timer()
            self._wake_readers()
            self._on_end()

    def _add(self, response: pb.GenerateImageResponse) -> None:
        self._messages.append(response)
        self.num_bytes += response.ByteSize()
        if response.HasField("preview"):
            self._previews.append(response)
            self._num_preview_bytes += len(response.preview.data)
        while self._num_preview_bytes > MAX_PREVIEW_BYTES:
            oldest = self._previews.popleft()
            size_bytes = len(oldest.preview.data)
            # The message keeps its number, without an event: readers skip unknown events.
            oldest.ClearField("preview")
            self._num_preview_bytes -= size_bytes
            self.num_bytes -= size_bytes
        self._wake_readers()

    def _wake_readers(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _leave(self) -> None:
        self._num_readers -= 1
        if self._num_readers or self._is_ended:
            return
        if self._unread_s:
            loop = asyncio.get_running_loop()
            self._unread_timer = loop.call_later(self._unread_s, self.stop)
        else:
            self.stop()

    def _stop_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None


class Recordings:
    """The recordings that can be joined, by caller and request id."""

    def __init__(self, *, ttl_s: float, max_bytes: int) -> None:
        """Makes an empty collection.

        Args:
            ttl_s: How long an ended generation is remembered, and one without readers continues.
            max_bytes: The most that all ended generations may take; the oldest are dropped first.
        """
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._by_key: dict[Key, Recording] = {}
        # In the order in which they ended, each with the timer that forgets it.
        self._ended: dict[Key, asyncio.TimerHandle] = {}
        self._num_bytes = 0

    def find(self, key: Key, *, fingerprint: bytes) -> Recording | None:
        """Returns the recording of a request, if there is one.

        Raises:
            RequestIdReused: The id belongs to another request of the caller.
        """
        recording = self._by_key.get(key)
        if recording is not None and recording.fingerprint != fingerprint:
            raise RequestIdReused(request_id=key[1])
        return recording

    def start(
        self,
        key: Key,
        opening: Awaitable[Responses],
        *,
        fingerprint: bytes,
        goes_on_alone: bool,
    ) -> Recording:
        """Records a new generation.

        Args:
            key: The caller and its request id.
            opening: Returns the generation, whose closing cancels it.
            fingerprint: Of the request.
            goes_on_alone: Whether the generation continues for a while without a reader.
        """
        recording = Recording(
            opening,
            fingerprint=fingerprint,
            unread_s=self._ttl_s if goes_on_alone else 0.0,
            on_end=lambda: self._remember(key, recording),
            forget=lambda: self._forget(key, recording),
        )
        self._by_key[key] = recording
        return recording

    async def aclose(self) -> None:
        """Cancels the generations that still run, and forgets all."""
        for key, recording in list(self._by_key.items()):
            self._forget(key, recording)
            await recording.aclose()

    def _remember(self, key: Key, recording: Recording) -> None:
        if recording.error is not None:
            self._forget(key, recording)
        if self._by_key.get(key) is not recording:
            return
        loop = asyncio.get_running_loop()
        self._ended[key] = loop.call_later(self._ttl_s, self._forget, key, recording)
        self._num_bytes += recording.num_bytes
        while self._num_bytes > self._max_bytes:
            oldest = next(iter(self._ended))
            self._forget(oldest, self._by_key[oldest])

    def _forget(self, key: Key, recording: Recording) -> None:
        if self._by_key.get(key) is not recording:
            return
        del self._by_key[key]
        timer = self._ended.pop(key, None)
        if timer is not None:
            timer.cancel()
            self._num_bytes -= recording.num_bytes
