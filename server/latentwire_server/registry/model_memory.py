"""What the loaded models take together, and who makes room for another one.

Event loop only. One model at a time asks for room: the registry loads one at a time. Who has to
wait for it is served before models that are asked for later, and nobody waits for ever: while a
model waits, those that have to go for it take no new generations.
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
    """There is no room at present, and nobody is left who would wait for it."""


class ModelMemory:
    """The loaded models, each with its size and when it was last used."""

    def __init__(
        self,
        engine: Engine,
        *,
        budget_bytes: Callable[[], int],
        on_unloaded: Callable[[str], None],
    ) -> None:
        """Takes who draws with the models, and who hears of those that go.

        Args:
            engine: lets go of models.
            budget_bytes: returns the most that loaded models may take; asked in a thread.
            on_unloaded: is called with the id of each model that goes.
        """
        self._engine = engine
        self._budget_bytes = budget_bytes
        self._on_unloaded = on_unloaded
        self._sizes: dict[str, int] = {}
        self._last_used: dict[str, float] = {}
        self._has_news = asyncio.Event()
        engine.listen(self.look_again)

    def used(self, model_id: str) -> None:
        """Says that somebody asks for a model, or had it until now."""
        self._last_used[model_id] = time.monotonic()

    async def add(self, model_id: str, *, size_bytes: int) -> None:
        """Takes in a loaded model with what it really takes, which may be more than was expected.

        What nobody needs makes room then, as far as it can.

        Raises:
            TooLargeError: it does not fit even alone.
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
        """Says that something changed: who waits for room may have it now, or want it no more."""
        self._has_news.set()

    async def budget_bytes(self) -> int:
        """Returns the most that loaded models may take."""
        return await asyncio.to_thread(self._budget_bytes)

    async def make_room(self, size_bytes: int, *, is_wanted: Callable[[], bool]) -> None:
        """Unloads what must go for so many bytes; waits until nobody needs it.

        Nothing is dropped before all of the room can be had.

        Raises:
            TooLargeError: it would not fit even alone.
            NobodyWaitsError: it would have to wait, and is not wanted any more.
        """
        budget_bytes = await self.budget_bytes()
        plan = partial(models_to_unload, size_bytes, budget_bytes=budget_bytes)
        held: tuple[str, ...] = ()
        try:
            while (leaving := plan(residents=self._residents())) is None:
                if not is_wanted():
                    raise NobodyWaitsError
                # Once and for all: if it were another one each time, none would ever be done.
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
        """Unloads a model, whether or not it is loaded; returns once its memory is free."""
        await _settled(self._remove([model_id]))

    def _remove(self, model_ids: Iterable[str]) -> list[asyncio.Future[None]]:
        # All of them before anything is awaited, so that none gets work meanwhile.
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
