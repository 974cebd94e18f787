"""Sends requests to a system and notes when what happened.

A closed loop asks how many images a second come out of so many clients; an open loop, as MLPerf's
server scenario, asks how long callers wait at a given rate of arrival.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.workload import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a request; times in seconds since it was sent."""

    latency_s: float
    outcome: str
    """"completed", "cancelled", "refused" or "late"."""
    queued_s: float | None = None
    first_progress_s: float | None = None
    first_preview_s: float | None = None
    steps_seen: int = 0
    has_deadline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All outcomes of one loop, and how long it took."""

    outcomes: tuple[Outcome, ...]
    elapsed_s: float


class System(Protocol):
    """Something that draws images for many callers."""

    name: str

    async def draw(self, request: Request) -> Outcome:
        """Draws one request to the end, PNG included."""
        ...


async def closed_loop(system: System, requests: Sequence[Request], *, num_clients: int) -> Run:
    """Lets `num_clients` clients work the requests off, each one at a time."""
    left = iter(requests)
    outcomes: list[Outcome] = []

    async def client() -> None:
        for request in left:
            outcome = await system.draw(request)
            outcomes.append(outcome)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(num_clients):
            tasks.create_task(client())
    return Run(outcomes=tuple(outcomes), elapsed_s=time.perf_counter() - started)


async def open_loop(system: System, requests: Sequence[Request]) -> Run:
    """Sends each request at its time of arrival, however many are still under way."""
    loop = asyncio.get_running_loop()
    started = loop.time()

    async def client(request: Request) -> Outcome:
        arrival = started + request.arrival_s
        await asyncio.sleep(arrival - loop.time())
        # What a busy load generator sends late, its caller has waited for.
        late_s = loop.time() - arrival
        outcome = await system.draw(request)
        return replace(outcome, latency_s=outcome.latency_s + late_s)

    async with asyncio.TaskGroup() as tasks:
        drawing = [tasks.create_task(client(request)) for request in requests]
    return Run(outcomes=tuple(task.result() for task in drawing), elapsed_s=loop.time() - started)
