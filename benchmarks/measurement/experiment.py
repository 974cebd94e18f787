"""Measures one workload: every system in turn, round after round.

Systems take turns within a round because the machine is noisier than most differences: a ratio of
measurements taken side by side holds where a comparison across minutes does not.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.load import SERVICE, closed_loop, open_loop
from benchmarks.measurement.agreement import compare
from benchmarks.measurement.interruption import interrupt
from benchmarks.measurement.overhead import measure_overhead
from benchmarks.measurement.results import Measurement, Result
from benchmarks.measurement.summary import Summary, spread, summarise
from benchmarks.workload import Request, requests_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.load import System
    from benchmarks.systems.bare_engine import BareEngine
    from benchmarks.systems.pipelines import Pipeline
    from benchmarks.systems.service import Service
    from benchmarks.workload import ClosedLoop, Kind, OpenLoop, Workload

_SAMPLE_S: Final = 0.1
_AGREEMENT_SEED: Final = 1234
_OTHER_SEED: Final = 4321


class Disagreement(Exception):
    """Two systems generate different images; the message names them and the difference."""


async def run(
    workload: Workload,
    service: Service,
    baselines: Sequence[Pipeline],
    *,
    num_rounds: int,
    in_float32: bool,
    engine: BareEngine | None = None,
) -> Result:
    """Checks that all systems agree, then measures them.

    Args:
        workload: The requests and how they arrive.
        service: The service, started.
        baselines: The pipelines to compare it with.
        num_rounds: How often everything is measured.
        in_float32: Whether the service computes in float32, which decides how close images must
            be.
        engine: The service's engine without a server; given if the overhead is to be measured.

    Raises:
        Disagreement: two systems generate different images; nothing was measured.
    """
    result = Result(workload=workload.name, service=service.description)
    await _check_agreement(result, workload, service, baselines, in_float32=in_float32)
    for number in range(num_rounds):
        for load in workload.closed:
            await _measure_closed(result, workload, load, service, baselines, number=number)
        if workload.interruption is not None:
            for system in _rotated([service, *baselines], number=number):
                interrupted = await interrupt(system, workload.interruption, number=number)
                result.interruptions.append(interrupted)
        result.calls_after_cancel.append(await _calls_after_cancel(service, workload.kinds[0]))
        if engine is not None:
            result.overheads.append(
                await measure_overhead(workload.kinds[0], service, engine, number=number)
            )
    capacity = _capacity(result)
    for number in range(num_rounds):
        for share in workload.open:
            await _measure_open(result, workload, share, service, rate=capacity, number=number)
    return result


async def _check_agreement(
    result: Result,
    workload: Workload,
    service: Service,
    baselines: Sequence[Pipeline],
    *,
    in_float32: bool,
) -> None:
    """Generates each kind with every system, which also warms up every shape."""
    kinds = list(workload.kinds)
    if workload.interruption is not None:
        kinds += [workload.interruption.long, workload.interruption.short]
    for number, kind in enumerate(kinds):
        complete = kind.model_copy(update={"cancel_after_steps": None, "deadline_s": None})
        request = Request(kind=complete, seed=_AGREEMENT_SEED)
        image, _ = await service.generate_image(request)
        for baseline in baselines:
            baseline_image, _ = await baseline.generate_image(request)
            agreement = compare(image, baseline_image)
            other, _ = await baseline.generate_image(Request(kind=complete, seed=_OTHER_SEED))
            both_in_float32 = in_float32 and baseline.is_float32
            if compare(image, other).is_good(in_float32=both_in_float32):
                message = f"{workload.name}, kind {number}: every seed gives the same image"
                raise Disagreement(message)
            result.agreements[f"{baseline.name}, kind {number}"] = agreement
            if not agreement.is_good(in_float32=both_in_float32):
                message = (
                    f"{workload.name}, kind {number}: {service.name} and {baseline.name} generate"
                    f" different images: {agreement}"
                )
                raise Disagreement(message)


async def _measure_closed(
    result: Result,
    workload: Workload,
    load: ClosedLoop,
    service: Service,
    baselines: Sequence[Pipeline],
    *,
    number: int,
) -> None:
    name = f"{load.num_clients} clients" if load.num_clients > 1 else "1 client"
    requests = requests_of(workload, num_requests=load.num_requests, seed=f"{name}, {number}")
    for system in _rotated([service, *baselines], number=number):
        if system is service:
            async with _observed(service) as observed:
                run = await closed_loop(service, requests, num_clients=load.num_clients)
            measurement = observed.measurement(load=name, number=number, summary=summarise(run))
        else:
            run = await closed_loop(system, requests, num_clients=load.num_clients)
            measurement = Measurement(
                system=system.name, load=name, round=number, summary=summarise(run)
            )
        result.measurements.append(measurement)


async def _measure_open(
    result: Result,
    workload: Workload,
    load: OpenLoop,
    service: Service,
    *,
    rate: float,
    number: int,
) -> None:
    name = f"open, {load.share_of_capacity:g} of capacity"
    requests = requests_of(
        workload,
        num_requests=load.num_requests,
        seed=f"{name}, {number}",
        rate=rate * load.share_of_capacity,
    )
    async with _observed(service) as observed:
        run = await open_loop(service, requests)
    result.measurements.append(
        observed.measurement(load=name, number=number, summary=summarise(run))
    )


async def _calls_after_cancel(service: Service, kind: Kind) -> int:
    leaving = kind.model_copy(update={"cancel_after_steps": kind.num_inference_steps // 2})
    before = await service.work_done()
    outcome = await service.generate(Request(kind=leaving, seed=_AGREEMENT_SEED))
    await service.wait_idle()
    after = await service.work_done()
    return after.num_calls - before.num_calls - outcome.steps_seen


def _rotated(systems: list[System], *, number: int) -> list[System]:
    """Returns the systems with a different one first in each round."""
    first = number % len(systems)
    return systems[first:] + systems[:first]


def _capacity(result: Result) -> float:
    """Returns the service's best median rate of the closed loops, in images per second."""
    rates: dict[str, list[float]] = {}
    for one in result.measurements:
        if one.system == SERVICE:
            rates.setdefault(one.load, []).append(one.summary.images_per_s)
    return max(spread(values)[1] for values in rates.values())


@dataclass(slots=True)
class _Observation:
    """The server's denoiser calls and memory while a loop runs."""

    rows_per_call: float | None = None
    occupancy: float | None = None
    peak_memory_bytes: int = 0
    memory_after_bytes: int = 0

    def measurement(self, *, load: str, number: int, summary: Summary) -> Measurement:
        return Measurement(
            system=SERVICE,
            load=load,
            round=number,
            summary=summary,
            rows_per_call=self.rows_per_call,
            occupancy=self.occupancy,
            peak_memory_bytes=self.peak_memory_bytes,
            memory_after_bytes=self.memory_after_bytes,
        )


@contextlib.asynccontextmanager
async def _observed(service: Service) -> AsyncIterator[_Observation]:
    """Yields an observation that is filled in when the block ends."""
    observation = _Observation()
    before = await service.work_done()

    async def watch() -> None:
        while True:
            resident = service.resident_bytes()
            observation.peak_memory_bytes = max(observation.peak_memory_bytes, resident)
            await asyncio.sleep(_SAMPLE_S)

    watching = asyncio.create_task(watch())
    try:
        yield observation
    finally:
        watching.cancel()
    await service.wait_idle()
    observation.memory_after_bytes = service.resident_bytes()
    # It may have grown since the last sample.
    observation.peak_memory_bytes = max(
        observation.peak_memory_bytes, observation.memory_after_bytes
    )
    after = await service.work_done()
    num_calls = after.num_calls - before.num_calls
    if num_calls:
        observation.rows_per_call = (after.num_rows - before.num_rows) / num_calls
        observation.occupancy = (after.num_rows - before.num_rows) / (
            after.num_places - before.num_places
        )
