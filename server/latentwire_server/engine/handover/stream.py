"""The stream of one generation's events, which a caller of the engine iterates once.

Event loop only. Closing it before its end cancels the generation.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from types import TracebackType

    from latentwire_server.engine.events import Event
    from latentwire_server.engine.handover.channel import Channel


class GenerationStream:
    """Iterates the events of a generation: ``Accepted`` first, ``Completed`` last.

    Iterating raises a ``GenerationError`` if the generation fails, is cancelled, or misses its
    deadline.
    """

    def __init__(self, generation_id: str, *, channel: Channel, loop: AbstractEventLoop) -> None:
        self.generation_id = generation_id
        self._channel = channel
        self._loop = loop
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self._channel.receive()
        except Exception:
            self._is_over = True
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancels the generation unless it has ended. May be called more than once."""
        self._is_over = True
        self._channel.close()

    def __del__(self) -> None:
        if self._is_over or self._channel.is_closed:
            return
        warnings.warn(f"unclosed stream of {self.generation_id}", ResourceWarning, 1, source=self)
        # The garbage collector may run on any thread, inside any lock: the event loop closes it.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._channel.close)
