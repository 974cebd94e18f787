"""Sends requests to a system and records their timings.

A closed loop measures how many images per second a number of clients get; an open loop, like
MLPerf's server scenario, measures how long clients wait at a given rate of arrival.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.workload import Request

SERVICE: Final = "service"
"""The service's name among the systems."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a request ended; times are in seconds since it was sent."""

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
    """Something that generates images for many clients."""

    name: str

    async def generate(self, request: Request) -> Outcome:
        """Generates one image, up to the encoded PNG."""
        ...


async def closed_loop(system: System, requests: Sequence[Request], *, num_clients: int) -> Run:
    """Runs the requests with `num_clients` clients, each of which sends one at a time."""
    remaining = iter(requests)
    outcomes: list[Outcome] = []

    async def client() -> None:
        for request in remaining:
            outcome = await system.generate(request)
            outcomes.append(outcome)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(num_clients):
            tasks.create_task(client())
    return Run(outcomes=tuple(outcomes), elapsed_s=time.perf_counter() - started)


async def open_loop(system: System, requests: Sequence[Request]) -> Run:
    """Sends each request at its time of arrival, however many are still running."""
    loop = asyncio.get_running_loop()
    started = loop.time()

    async def client(request: Request) -> Outcome:
        arrival = started + request.arrival_s
        await asyncio.sleep(arrival - loop.time())
        # When the load generator is too busy to send in time, the client waits for that too.
        late_s = loop.time() - arrival
        outcome = await system.generate(request)
        return replace(outcome, latency_s=outcome.latency_s + late_s)

    async with asyncio.TaskGroup() as tasks:
        clients = [tasks.create_task(client(request)) for request in requests]
    return Run(outcomes=tuple(task.result() for task in clients), elapsed_s=loop.time() - started)
