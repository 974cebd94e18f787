"""The progress of models that are being loaded. Event loop, except where noted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from latentwire_server.engine.events import ModelLoading

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable


class LoadProgress:
    """The loads under way."""

    def __init__(self, *, on_report: Callable[[ModelLoading], None]) -> None:
        """Calls ``on_report`` with each new state."""
        self._on_report = on_report
        self._latest: dict[str, ModelLoading] = {}
        self._changed = asyncio.Event()

    def begin(self, model_id: str) -> None:
        """Adds a load whose size is not known yet."""
        self._latest[model_id] = ModelLoading(model=model_id, loaded_bytes=0, total_bytes=0)
        self.repeat(model_id)

    def end(self, model_id: str) -> None:
        """Removes a load."""
        self._latest.pop(model_id, None)

    def report(self, model_id: str, loaded_bytes: int, total_bytes: int) -> None:
        """Records the progress of a load; does nothing once it has ended."""
        if model_id in self._latest:
            self._latest[model_id] = ModelLoading(
                model=model_id, loaded_bytes=loaded_bytes, total_bytes=total_bytes
            )
            self.repeat(model_id)

    def repeat(self, model_id: str) -> None:
        """Reports a load's progress again, if there is one, for a caller that has just arrived."""
        progress = self._latest.get(model_id)
        if progress is not None:
            self._on_report(progress)
            self._changed.set()
            self._changed = asyncio.Event()

    def reporter(self, model_id: str) -> Callable[[int, int], None]:
        """Returns a function that reports the loaded bytes and those in all. Any thread."""
        loop = asyncio.get_running_loop()

        def report(loaded_bytes: int, total_bytes: int) -> None:
            # A closed event loop has no more readers.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self.report, model_id, loaded_bytes, total_bytes)

        return report

    async def follow(
        self, model_id: str, load: asyncio.Task[object]
    ) -> AsyncGenerator[ModelLoading]:
        """Yields each new state of a load, until it is done."""
        latest = None
        while not load.done():
            changed, progress = self._changed, self._latest.get(model_id)
            if progress is not None and progress != latest:
                latest = progress
                yield progress
                continue
            news = asyncio.ensure_future(changed.wait())
            await asyncio.wait({load, news}, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
