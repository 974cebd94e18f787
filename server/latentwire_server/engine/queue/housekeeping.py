"""Housekeeping by the clock: deadlines, queue positions, removal of ended generations.

Event loop only. Independent of the device thread, so that deadlines are enforced and queue
positions are sent while the device is inside a long call.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from latentwire_server.engine.errors import DeadlinePassed
from latentwire_server.engine.events import Queued

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentwire_server.engine.handover.generation import Generation
    from latentwire_server.engine.policy.estimate import Estimator
    from latentwire_server.engine.queue.register import Register
    from latentwire_server.engine.settings import EngineSettings


class Housekeeper:
    """Checks the registered generations whenever something has changed or is due."""

    def __init__(
        self,
        register: Register,
        *,
        estimator: Estimator,
        settings: EngineSettings,
        on_deadline: Callable[[Generation, DeadlinePassed], None],
    ) -> None:
        self._register = register
        self._estimator = estimator
        self._settings = settings
        self._on_deadline = on_deadline
        self._published: dict[str, tuple[int, float]] = {}
        """The last queue position of each waiting generation, and when it was sent."""
        self._has_news = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def listen(self, on_change: Callable[[], None]) -> None:
        """Registers a callback that is called after each check."""
        self._listeners.append(on_change)

    def notify(self) -> None:
        """Requests a check, because something has changed."""
        self._has_news.set()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            self._has_news.clear()
            due = self.check(time.monotonic())
            for on_change in self._listeners:
                on_change()
            wait_s = None if due is None else max(0.0, due - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._has_news.wait()

    async def wait_until_idle(self) -> None:
        """Returns once every generation has ended."""
        self._is_idle.clear()
        self._has_news.set()
        await self._is_idle.wait()

    def check(self, now: float) -> float | None:
        """Does what is due at ``now``. Returns when to check again; ``None``: when notified."""
        for generation in self._register.active:
            deadline = generation.request.deadline
            if deadline is not None and deadline <= now:
                self._on_deadline(generation, DeadlinePassed())
        self._register.sweep()
        active = self._register.active
        if not active:
            self._is_idle.set()
        deadlines = [one.request.deadline for one in active if one.request.deadline is not None]
        return min([*deadlines, *self._publish_positions(now)], default=None)

    def _publish_positions(self, now: float) -> list[float]:
        """Publishes queue positions that changed or are due. Returns when each is due again."""
        running = [one.work_left for one in self._register.running]
        queued = self._register.queued
        num_free = max(0, self._settings.max_running - len(running))
        if len(queued) <= num_free:
            self._published = {}
            return []
        waits_s = self._estimator.waits_s(running=running, queued=[one.work_left for one in queued])
        interval_s = self._settings.queued_event_interval_s
        published: dict[str, tuple[int, float]] = {}
        # The first ones have a free place already and start with the device's next tick.
        for ahead_count, generation in list(enumerate(queued))[num_free:]:
            position, published_at = self._published.get(generation.id, (None, now))
            if position != ahead_count or now >= published_at + interval_s:
                published_at = now
                wait_s = waits_s[ahead_count]
                generation.publish(Queued(ahead_count=ahead_count, estimated_wait_s=wait_s))
            published[generation.id] = (ahead_count, published_at)
        self._published = published
        return [published_at + interval_s for _, published_at in published.values()]
