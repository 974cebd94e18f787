"""A short request that arrives while a long one runs: what each of them loses by it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.workload import Request

if TYPE_CHECKING:
    from benchmarks.load import System
    from benchmarks.workload import Interruption

_GOLDEN: Final = (5**0.5 - 1) / 2
"""Multiples of it, without their whole parts, lie evenly in [0, 1), however many they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """Latencies in one round of one system, in seconds."""

    system: str
    round: int
    long_alone_s: float
    short_alone_s: float
    long_s: float
    short_s: float

    @property
    def slowdown(self) -> float:
        """What the long request lost, as a multiple of what the short one takes alone."""
        return (self.long_s - self.long_alone_s) / self.short_alone_s


async def interrupt(system: System, case: Interruption, *, number: int) -> Interrupted:
    """Draws both alone, then the short one into the long one.

    Args:
        system: Who draws.
        case: What is drawn.
        number: Of the round; decides the moment of arrival, the same one for every system. The
            first is halfway, where the wait for the long one to end is its mean.
    """
    after_share = (0.5 + number * _GOLDEN) % 1
    # Each seed makes a prompt of its own: the service remembers encoded prompts.
    long_alone, short_alone, long, short = (
        Request(kind=kind, seed=4 * number + place)
        for place, kind in enumerate((case.long, case.short, case.long, case.short))
    )
    long_alone_s = (await system.draw(long_alone)).latency_s
    short_alone_s = (await system.draw(short_alone)).latency_s

    async def arrive() -> float:
        await asyncio.sleep(after_share * long_alone_s)
        return (await system.draw(short)).latency_s

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(system.draw(long))
        arriving = tasks.create_task(arrive())
    return Interrupted(
        system=system.name,
        round=number,
        long_alone_s=long_alone_s,
        short_alone_s=short_alone_s,
        long_s=running.result().latency_s,
        short_s=arriving.result(),
    )
