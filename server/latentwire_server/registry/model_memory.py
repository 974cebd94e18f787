"""The memory of the loaded models, and how another one gets room.

Event loop only. Models are loaded one at a time, so one at a time asks for room, in the order of
the requests. None waits for ever: while a model waits for room, the models that must go for it get
no new generations.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from latentwire_server.registry.memory_plan import Resident, models_to_unload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from latentwire_server.engine.engine import Engine

_logger: Final = logging.getLogger(__name__)


class NobodyWaitsError(Exception):
    """There is no room at present, and no caller waits for the model any more."""


class ModelMemory:
    """The loaded models, with their sizes and when each was last used."""

    def __init__(
        self,
        engine: Engine,
        *,
        budget_bytes: Callable[[], int],
        on_unloaded: Callable[[str], None],
    ) -> None:
        """Starts without any loaded model.

        Args:
            engine: Releases models.
            budget_bytes: Returns the most that loaded models may take; called in a thread.
            on_unloaded: Is called with the id of each model that is unloaded.
        """
        self._engine = engine
        self._budget_bytes = budget_bytes
        self._on_unloaded = on_unloaded
        self._sizes: dict[str, int] = {}
        self._last_used: dict[str, float] = {}
        self._has_news = asyncio.Event()
        engine.listen(self.look_again)

    def used(self, model_id: str) -> None:
        """Notes that a model is used now."""
        self._last_used[model_id] = time.monotonic()

    async def add(self, model_id: str, *, size_bytes: int) -> None:
        """Records a loaded model and its real size.

        If that is more than expected, idle models are unloaded, if there are any.

        Raises:
            TooLargeError: It does not fit even alone.
        """
        budget_bytes = await self.budget_bytes()
        plan = partial(models_to_unload, size_bytes, budget_bytes=budget_bytes)
        leaving = plan(residents=self._residents())
        if leaving is None:
            _logger.warning("models take more than memory_budget_bytes=%d", budget_bytes)
        removals = self._remove(leaving or ())
        self._sizes[model_id] = size_bytes
        self.used(model_id)
        await _settled(removals)

    def look_again(self) -> None:
        """Wakes the model that waits for room: there may be room, or no caller left."""
        self._has_news.set()

    async def budget_bytes(self) -> int:
        """Returns the most that loaded models may take."""
        return await asyncio.to_thread(self._budget_bytes)

    async def make_room(self, size_bytes: int, *, is_wanted: Callable[[], bool]) -> None:
        """Unloads models until ``size_bytes`` fit; waits while those that must go are in use.

        Nothing is unloaded before there is enough to unload.

        Raises:
            TooLargeError: It would not fit even alone.
            NobodyWaitsError: It would have to wait, and no caller wants it any more.
        """
        budget_bytes = await self.budget_bytes()
        plan = partial(models_to_unload, size_bytes, budget_bytes=budget_bytes)
        held: tuple[str, ...] = ()
        try:
            while (leaving := plan(residents=self._residents())) is None:
                if not is_wanted():
                    raise NobodyWaitsError
                # Chosen once: with another choice each time, none of them would ever become idle.
                held = held or plan(residents=self._residents(as_if_idle=True)) or ()
                for id_ in held:
                    self._engine.models.hold(id_)
                self._has_news.clear()
                await self._has_news.wait()
            removals = self._remove(leaving)
        finally:
            for id_ in held:
                self._engine.models.release(id_)
        await _settled(removals)

    async def drop(self, model_id: str) -> None:
        """Unloads a model if it is loaded; returns once its memory is free."""
        await _settled(self._remove([model_id]))

    def _remove(self, model_ids: Iterable[str]) -> list[asyncio.Future[None]]:
        # All of them before anything is awaited: none may get work meanwhile.
        removals = []
        for id_ in model_ids:
            if self._sizes.pop(id_, None) is not None:
                removals.append(asyncio.wrap_future(self._engine.models.remove(id_)))
                _logger.info("unloading model=%s", id_)
            self._on_unloaded(id_)
        return removals

    def _residents(self, *, as_if_idle: bool = False) -> list[Resident]:
        return [
            Resident(
                id=id_,
                size_bytes=size,
                last_used=self._last_used.get(id_, 0.0),
                is_in_use=not as_if_idle and self._engine.models.is_needed(id_),
            )
            for id_, size in self._sizes.items()
        ]


async def _settled(removals: list[asyncio.Future[None]]) -> None:
    if removals:
        await asyncio.wait(removals)
