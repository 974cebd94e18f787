"""A short request that arrives while a long one runs, and the time that each of them loses."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.workload import Request

if TYPE_CHECKING:
    from benchmarks.load import System
    from benchmarks.workload import Interruption

_GOLDEN: Final = (5**0.5 - 1) / 2
"""The fractional parts of its multiples are spread evenly over [0, 1), however many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """One system's latencies in one round, in seconds."""

    system: str
    round: int
    long_alone_s: float
    short_alone_s: float
    long_s: float
    short_s: float

    @property
    def slowdown(self) -> float:
        """The time that the long request lost, in multiples of the short one's time alone."""
        return (self.long_s - self.long_alone_s) / self.short_alone_s


async def interrupt(system: System, case: Interruption, *, number: int) -> Interrupted:
    """Generates each request alone, then the short one while the long one runs.

    Args:
        system: The system to measure.
        case: The two requests.
        number: The round. It decides when the short request arrives, at the same moment for every
            system: in the first round halfway through the long one, which is the mean.
    """
    after_share = (0.5 + number * _GOLDEN) % 1
    # Each seed gives a different prompt, because the service caches encoded prompts.
    long_alone, short_alone, long, short = (
        Request(kind=kind, seed=4 * number + place)
        for place, kind in enumerate((case.long, case.short, case.long, case.short))
    )
    long_alone_s = (await system.generate(long_alone)).latency_s
    short_alone_s = (await system.generate(short_alone)).latency_s

    async def arrive() -> float:
        await asyncio.sleep(after_share * long_alone_s)
        return (await system.generate(short)).latency_s

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(system.generate(long))
        arriving = tasks.create_task(arrive())
    return Interrupted(
        system=system.name,
        round=number,
        long_alone_s=long_alone_s,
        short_alone_s=short_alone_s,
        long_s=running.result().latency_s,
        short_s=arriving.result(),
    )
