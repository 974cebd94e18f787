"""Plots the rates by number of clients, and the latencies by rate of arrival."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from benchmarks.measurement.summary import spread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.measurement.results import Measurement, Result


def write_plots(folder: Path, results: Sequence[Result]) -> None:
    """Writes an SVG file for each workload and kind of loop."""
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        name = result.workload.replace(" ", "-").replace(",", "").lower()
        closed = [one for one in result.measurements if "client" in one.load]
        opened = [one for one in result.measurements if "open" in one.load]
        if closed:
            _bars(result.workload, closed).savefig(folder / f"{name}-rate.svg")
        if opened:
            _latencies(result.workload, opened).savefig(folder / f"{name}-latency.svg")


def _bars(title: str, measurements: Sequence[Measurement]) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    loads = list(dict.fromkeys(one.load for one in measurements))
    systems = list(dict.fromkeys(one.system for one in measurements))
    width = 0.8 / len(systems)
    for number, system in enumerate(systems):
        spreads = [
            spread(
                one.summary.images_per_s
                for one in measurements
                if (one.system, one.load) == (system, load)
            )
            for load in loads
        ]
        medians = [median for _, median, _ in spreads]
        errors = [
            [median - least for least, median, _ in spreads],
            [greatest - median for _, median, greatest in spreads],
        ]
        places = [place + number * width for place in range(len(loads))]
        axes.bar(places, medians, width, yerr=errors, capsize=3, label=system)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(loads))], loads)
    axes.set(title=title, ylabel="images per second")
    axes.legend()
    return figure


def _latencies(title: str, measurements: Sequence[Measurement]) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    loads = list(dict.fromkeys(one.load for one in measurements))
    for name, label in (("latency_p50_s", "p50"), ("latency_p95_s", "p95")):
        medians = []
        for load in loads:
            values = [getattr(one.summary, name) for one in measurements if one.load == load]
            observed = [value for value in values if value is not None]
            medians.append(spread(observed)[1] if observed else float("nan"))
        axes.plot([load.removeprefix("open, ") for load in loads], medians, "o-", label=label)
    axes.set(title=title, xlabel="arrivals", ylabel="seconds", ylim=(0, None))
    axes.legend()
    return figure
