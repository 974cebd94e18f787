"""One workload, measured: every system in turn, round after round, and what came of it.

Systems take turns inside a round because the machine is noisier than most differences: a ratio of
neighbours in time holds where a figure of this minute against one of the last does not.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from benchmarks.agreement import compare
from benchmarks.interruption import interrupt
from benchmarks.load import closed_loop, open_loop
from benchmarks.overhead import measure_overhead
from benchmarks.summary import Summary, spread, summarise
from benchmarks.workload import Request, requests_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.agreement import Agreement
    from benchmarks.interruption import Interrupted
    from benchmarks.load import System
    from benchmarks.overhead import BareEngine, Overhead
    from benchmarks.pipelines import Pipeline
    from benchmarks.systems import Service
    from benchmarks.workload import ClosedLoop, Kind, OpenLoop, Workload

SERVICE: Final = "service"
_SAMPLE_S: Final = 0.1
_AGREEMENT_SEED: Final = 1234
_OTHER_SEED: Final = 4321


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One loop of one system in one round."""

    system: str
    load: str
    round: int
    summary: Summary
    rows_per_call: float | None = None
    occupancy: float | None = None
    """Rows of the calls over what they could have had, 0 to 1."""
    peak_memory_bytes: int | None = None
    memory_after_bytes: int | None = None
    """Of the server, once it is idle again."""


@dataclass(slots=True, kw_only=True)
class Result:
    """Everything that was measured of a workload."""

    workload: str
    service: dict[str, str] = field(default_factory=dict)
    """How the server ran."""
    least_image_s: float | None = None
    """What an image of the mix takes in the denoiser at the rates of the device's ceiling."""
    agreements: dict[str, Agreement] = field(default_factory=dict)
    """By baseline and kind."""
    measurements: list[Measurement] = field(default_factory=list)
    interruptions: list[Interrupted] = field(default_factory=list)
    calls_after_cancel: list[int] = field(default_factory=list)
    """Denoiser calls that ended after the last step that a leaving client saw."""
    overheads: list[Overhead] = field(default_factory=list)


class Disagreement(Exception):
    """Two systems draw different pictures; the text says which and how far apart."""


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
        workload: What to measure.
        service: The service, started.
        baselines: What it is compared with.
        num_rounds: How often everything is measured.
        in_float32: Whether the service computes in float32; decides how near pictures must be.
        engine: The service's engine with nothing around it, where the overhead is measured.

    Raises:
        Disagreement: two systems draw different pictures; nothing was measured.
    """
    result = Result(workload=workload.name, service=service.description)
    await _check_agreement(result, workload, service, baselines, in_float32=in_float32)
    for number in range(num_rounds):
        for load in workload.closed:
            await _measure_closed(result, workload, load, service, baselines, number=number)
        for system in _in_turn([service, *baselines], number=number):
            if workload.interruption is not None:
                case = workload.interruption
                result.interruptions.append(await interrupt(system, case, number=number))
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
    """Draws each kind by every system; this also warms every shape up."""
    kinds = list(workload.kinds)
    if workload.interruption is not None:
        kinds += [workload.interruption.long, workload.interruption.short]
    for number, kind in enumerate(kinds):
        lasting = kind.model_copy(update={"cancel_after_steps": None, "deadline_s": None})
        request = Request(kind=lasting, seed=_AGREEMENT_SEED)
        own, _ = await service.draw_image(request)
        for baseline in baselines:
            theirs, _ = await baseline.draw_image(request)
            agreement = compare(own, theirs)
            other, _ = await baseline.draw_image(Request(kind=lasting, seed=_OTHER_SEED))
            in_short = not (in_float32 and baseline.is_float32)
            if compare(own, other).is_good(in_float32=not in_short):
                message = f"{workload.name}, kind {number}: every seed draws the same picture"
                raise Disagreement(message)
            result.agreements[f"{baseline.name}, kind {number}"] = agreement
            if not agreement.is_good(in_float32=not in_short):
                message = (
                    f"{workload.name}, kind {number}: {service.name} and {baseline.name} draw"
                    f" different pictures: {agreement}"
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
    for system in _in_turn([service, *baselines], number=number):
        if system is service:
            async with _observed(service) as observed:
                run = await closed_loop(service, requests, num_clients=load.num_clients)
            measurement = observed.of(load=name, number=number, summary=summarise(run))
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
    result.measurements.append(observed.of(load=name, number=number, summary=summarise(run)))


async def _calls_after_cancel(service: Service, kind: Kind) -> int:
    leaving = kind.model_copy(update={"cancel_after_steps": kind.num_inference_steps // 2})
    before = await service.work_done()
    outcome = await service.draw(Request(kind=leaving, seed=_AGREEMENT_SEED))
    await service.wait_idle()
    after = await service.work_done()
    return after.num_calls - before.num_calls - outcome.steps_seen


def _in_turn(systems: list[System], *, number: int) -> list[System]:
    """Returns the systems, another one first in each round."""
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
    """What is seen of the server while a loop runs."""

    rows_per_call: float | None = None
    occupancy: float | None = None
    peak_memory_bytes: int = 0
    memory_after_bytes: int = 0

    def of(self, *, load: str, number: int, summary: Summary) -> Measurement:
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
    """Gives what is filled in by its end."""
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
