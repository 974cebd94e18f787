"""What the service adds to a step of its engine, measured with a slow reader."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import latentwire
from benchmarks.measurement.summary import spread

if TYPE_CHECKING:
    from benchmarks.systems.bare_engine import BareEngine
    from benchmarks.systems.service import Service
    from benchmarks.workload import Kind

_NUM_REQUESTS: Final = 3
_PAUSE_STEPS: Final = 2.0
"""How long the slow reader pauses after each event, in steps of the engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Seconds per step in one round, the medians of a few requests."""

    round: int
    engine_step_s: float
    service_step_s: float

    @property
    def share(self) -> float:
        """The time that the service adds, as a share of the engine's step."""
        return self.service_step_s / self.engine_step_s - 1


async def measure_overhead(
    kind: Kind, service: Service, engine: BareEngine, *, number: int
) -> Overhead:
    """Generates with the engine and the service in turn.

    The service's client reads slowly, so that progress events wait for it.

    Args:
        kind: The request to generate.
        service: The server, idle.
        engine: The same engine without a server around it.
        number: The round.
    """
    engine_s, service_s = [], []
    first = number * _NUM_REQUESTS
    for seed in range(first, first + _NUM_REQUESTS):
        engine_s.append(await engine.step_s(kind, seed=seed))
        service_s.append(
            await _service_step_s(kind, service, seed=seed, pause_s=_PAUSE_STEPS * engine_s[-1])
        )
    return Overhead(
        round=number, engine_step_s=spread(engine_s)[1], service_step_s=spread(service_s)[1]
    )


async def _service_step_s(kind: Kind, service: Service, *, seed: int, pause_s: float) -> float:
    stream = service.client.stream(
        f"{kind.prompt} {seed}",
        width=kind.width,
        height=kind.height,
        num_inference_steps=kind.num_inference_steps,
        guidance_scale=kind.guidance_scale,
        scheduler=kind.scheduler,
        seed=seed,
    )
    denoising_s = 0.0
    async with stream as events:
        async for event in events:
            await asyncio.sleep(pause_s)
            if isinstance(event, latentwire.Completed):
                denoising_s = event.timings.denoising_s
    return denoising_s / kind.num_inference_steps
