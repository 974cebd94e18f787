"""The parts behind the figures of `make bench`: arrivals, percentiles, ratios and agreement."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.load import Outcome, Run, closed_loop, open_loop
from benchmarks.measurement.agreement import compare
from benchmarks.measurement.experiment import Disagreement, run
from benchmarks.measurement.interruption import interrupt
from benchmarks.measurement.results import Measurement
from benchmarks.measurement.summary import percentile, summarise
from benchmarks.report.report import ratios
from benchmarks.workload import (
    ClosedLoop,
    Interruption,
    Kind,
    Request,
    Workload,
    read_workload,
    requests_of,
)

WORKLOADS = sorted(Path("benchmarks/workloads").glob("*.toml"))


class CountingSystem:
    """A system that generates nothing, and counts how many requests run at once."""

    name = "counting"

    def __init__(self) -> None:
        self.num_running = 0
        self.most_running = 0

    async def generate(self, request: Request) -> Outcome:
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        await asyncio.sleep(0)
        self.num_running -= 1
        return Outcome(latency_s=1.0, outcome="completed")


def _workload(*kinds: Kind) -> Workload:
    return Workload(
        name="test",
        description="",
        kinds=kinds,
        closed=(ClosedLoop(num_clients=2, num_requests=4),),
    )


def _kind(**fields: object) -> Kind:
    return Kind(width=64, height=64, num_inference_steps=2, **fields)


@pytest.mark.parametrize("path", WORKLOADS, ids=lambda path: path.stem)
def test_every_workload_of_the_project_is_valid(path: Path) -> None:
    workload = read_workload(path)
    assert workload.closed
    assert requests_of(workload, num_requests=3, seed=0)


def test_the_mix_follows_its_weights_and_is_the_same_for_every_system() -> None:
    workload = _workload(_kind(weight=3), _kind(weight=1, guidance_scale=1.0))
    requests = requests_of(workload, num_requests=4000, seed=1)
    assert sum(one.kind.guidance_scale == 1.0 for one in requests) == pytest.approx(1000, rel=0.1)
    assert requests == requests_of(workload, num_requests=4000, seed=1)
    again = requests_of(workload, num_requests=4000, seed=2)
    assert len({one.seed for one in [*requests, *again]}) == 8000


def test_arrivals_are_a_poisson_process() -> None:
    requests = requests_of(_workload(_kind()), num_requests=4000, seed=1, rate=5.0)
    gaps = np.diff([one.arrival_s for one in requests])
    assert gaps.mean() == pytest.approx(0.2, rel=0.1)
    # The standard deviation of an exponential distribution equals its mean.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)


async def test_a_closed_loop_keeps_its_clients_busy_and_no_more() -> None:
    system = CountingSystem()
    requests = requests_of(_workload(_kind()), num_requests=20, seed=0)
    result = await closed_loop(system, requests, num_clients=3)
    assert system.most_running == 3
    assert len(result.outcomes) == 20


async def test_an_open_loop_sends_without_waiting_for_earlier_requests() -> None:
    system = CountingSystem()
    requests = requests_of(_workload(_kind()), num_requests=20, seed=0, rate=1e6)
    result = await open_loop(system, requests)
    assert system.most_running > 3
    assert len(result.outcomes) == 20


def test_percentiles_are_measured_values() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99)] == [50, 95, 99]
    assert percentile([], 0.5) is None


def test_only_completed_requests_count_as_images() -> None:
    outcomes = tuple(
        Outcome(latency_s=latency_s, outcome=outcome)
        for latency_s, outcome in ((1, "completed"), (3, "completed"), (9, "late"), (9, "refused"))
    )
    summary = summarise(Run(outcomes=outcomes, elapsed_s=4.0))
    assert summary.images_per_s == 0.5
    assert (summary.latency_p50_s, summary.latency_p95_s, summary.latency_p99_s) == (1, 3, None)
    assert (summary.num_late, summary.num_refused, summary.num_cancelled) == (1, 1, 0)


def test_ratios_compare_measurements_of_the_same_round() -> None:
    def measurement(system: str, number: int, seconds: float) -> Measurement:
        outcomes = (Outcome(latency_s=seconds, outcome="completed"),)
        summary = summarise(Run(outcomes=outcomes, elapsed_s=seconds))
        return Measurement(system=system, load="", round=number, summary=summary)

    service = [measurement("service", 0, 1.0), measurement("service", 1, 10.0)]
    baseline = [measurement("D32", 1, 20.0), measurement("D32", 0, 2.0)]
    assert ratios(service, baseline) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("difference", "in_float32", "is_good"),
    [(0, True, True), (2, True, True), (3, True, False), (3, False, True), (60, False, False)],
)
def test_images_agree_within_the_limit_of_the_number_format(
    difference: int, *, in_float32: bool, is_good: bool
) -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    other = image.copy()
    other[:8] += np.uint8(difference)
    agreement = compare(Image.fromarray(image), Image.fromarray(other))
    assert agreement.max_difference == difference
    assert agreement.is_good(in_float32=in_float32) is is_good


class QueueingSystem:
    """A system that serves one request at a time, in order; a step takes 10 ms."""

    name = "queue"

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def generate(self, request: Request) -> Outcome:
        started = asyncio.get_running_loop().time()
        async with self._lock:
            await asyncio.sleep(request.kind.num_inference_steps / 100)
        latency_s = asyncio.get_running_loop().time() - started
        return Outcome(latency_s=latency_s, outcome="completed")


async def test_an_interruption_shows_how_long_a_short_request_queues() -> None:
    long = Kind(width=64, height=64, num_inference_steps=60)
    short = Kind(width=64, height=64, num_inference_steps=3)
    case = Interruption(long=long, short=short)
    rounds = [await interrupt(QueueingSystem(), case, number=number) for number in range(3)]
    # Arrivals are spread over the long request, and each waits for the rest of it.
    assert max(one.short_s for one in rounds) > 4 * rounds[0].short_alone_s
    assert len({round(one.short_s, 2) for one in rounds}) > 1
    assert all(one.slowdown < 2 for one in rounds)


class GreySystem:
    """A system whose images are grey all over, and which counts the requests of its loops."""

    is_float32 = True

    def __init__(self, name: str, grey: int, *, uses_seed: bool = True) -> None:
        self.name = name
        self._uses_seed = uses_seed
        self._grey = grey
        self.description: dict[str, str] = {}
        self.num_generated = 0

    async def generate(self, request: Request) -> Outcome:
        self.num_generated += 1
        return Outcome(latency_s=1.0, outcome="completed")

    async def generate_image(self, request: Request) -> tuple[Image.Image, Outcome]:
        grey = self._grey + (request.seed % 100 if self._uses_seed else 0)
        image = Image.new("RGB", (64, 64), (grey,) * 3)
        return image, Outcome(latency_s=1.0, outcome="completed")


async def test_nothing_is_measured_if_images_differ() -> None:
    service, baseline = GreySystem("service", 100), GreySystem("D32", 103)
    with pytest.raises(Disagreement, match="kind 0: service and D32 generate different images"):
        await run(_workload(_kind()), service, [baseline], num_rounds=1, in_float32=True)
    assert service.num_generated == baseline.num_generated == 0


async def test_nothing_is_measured_if_every_seed_gives_the_same_image() -> None:
    service, baseline = (GreySystem(name, 100, uses_seed=False) for name in ("service", "D32"))
    with pytest.raises(Disagreement, match="kind 0: every seed gives the same image"):
        await run(_workload(_kind()), service, [baseline], num_rounds=1, in_float32=True)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_service_is_measured_from_end_to_end(tmp_path: Path) -> None:
    workload = tmp_path / "tiny.toml"
    workload.write_text(
        """
        name = "tiny"
        description = "The service alone."
        max_rows = 4
        kinds = [{ width = 64, height = 64, num_inference_steps = 8 }]
        closed = [{ num_clients = 2, num_requests = 4 }]
        """
    )
    command = [sys.executable, "-m", "benchmarks", workload, "--rounds", "1"]
    command += ["--backend", "eager", "--out", tmp_path / "out", "--baselines"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "2 clients, service" in (tmp_path / "out" / "tables.md").read_text()
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    (closed,) = result["measurements"]
    assert closed["summary"]["num_completed"] == 4
    assert 1 < closed["rows_per_call"] <= 4
    assert 0 <= result["calls_after_cancel"][0] <= 8


@pytest.mark.soak
@pytest.mark.timeout(240)
@pytest.mark.parametrize("other", ["D32", "OV", "Dbest"])
def test_a_workload_is_measured_from_end_to_end(tmp_path: Path, other: str) -> None:
    workload = tmp_path / "tiny.toml"
    workload.write_text(
        """
        name = "tiny"
        description = "As little as can be measured."
        overhead = true
        max_rows = 4
        kinds = [{ width = 64, height = 64, num_inference_steps = 24, preview_interval_steps = 2 }]
        closed = [{ num_clients = 2, num_requests = 4 }]
        open = [{ share_of_capacity = 0.5, num_requests = 2 }]
        [interruption]
        long = { width = 64, height = 64, num_inference_steps = 8 }
        short = { width = 64, height = 64, num_inference_steps = 2 }
        """
    )
    command = [sys.executable, "-m", "benchmarks", workload, "--rounds", "1"]
    command += ["--baselines", other, "--backend", "eager"]
    ended = subprocess.run(
        [*command, "--out", tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "images/s" in ended.stdout
    assert f"{other}: a short request that meets a long one" in ended.stdout
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    (result,) = written["results"]
    closed, baseline, opened = result["measurements"]
    assert [closed["system"], baseline["system"]] == ["service", other]
    assert closed["summary"]["num_completed"] == 4
    assert 1 < closed["rows_per_call"] <= 4
    assert closed["summary"]["first_preview_p50_s"] > closed["summary"]["first_progress_p50_s"]
    assert closed["peak_memory_bytes"] > 100 * 2**20
    assert 0 < closed["occupancy"] <= 1
    assert result["service"]["backend"] == "eager"
    assert opened["summary"]["num_completed"] == 2
    assert 0 <= result["calls_after_cancel"][0] <= 10
    (overhead,) = result["overheads"]
    assert min(overhead["engine_step_s"], overhead["service_step_s"]) > 0
    assert "the service, read slowly, adds" in ended.stdout
    assert closed["memory_after_bytes"] <= closed["peak_memory_bytes"]
    assert result["least_image_s"] < 1 / closed["summary"]["images_per_s"]
    assert result["agreements"][f"{other}, kind 0"]["max_difference"] <= 2
    assert written["machine"]["dtype"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "results.json",
        "tables.md",
        "tiny-latency.svg",
        "tiny-rate.svg",
    ]
