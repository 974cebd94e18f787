"""Summarises the outcomes of a run: rates, percentiles and shares."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.load import Outcome, Run

LEAST_FOR_P99: Final = 100
"""Among fewer requests, the 99th percentile is just the slowest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one run. Times are in seconds, None if nothing was observed."""

    images_per_s: float
    latency_p50_s: float | None
    latency_p95_s: float | None
    latency_p99_s: float | None
    first_progress_p50_s: float | None
    first_preview_p50_s: float | None
    queued_p50_s: float | None
    queued_p95_s: float | None
    num_completed: int
    num_cancelled: int
    num_refused: int
    num_late: int
    """Requests whose deadline passed."""
    deadlines_met: float | None
    """The share of requests with a deadline that were completed."""


def summarise(run: Run) -> Summary:
    """Summarises a run; latencies are those of completed requests."""
    completed = [one for one in run.outcomes if one.outcome == "completed"]
    counts = Counter(one.outcome for one in run.outcomes)
    latencies = [one.latency_s for one in completed]
    met = [one.outcome == "completed" for one in run.outcomes if one.has_deadline]
    return Summary(
        images_per_s=len(completed) / run.elapsed_s,
        latency_p50_s=percentile(latencies, 0.50),
        latency_p95_s=percentile(latencies, 0.95),
        latency_p99_s=percentile(latencies, 0.99) if len(latencies) >= LEAST_FOR_P99 else None,
        first_progress_p50_s=_median(run.outcomes, lambda one: one.first_progress_s),
        first_preview_p50_s=_median(run.outcomes, lambda one: one.first_preview_s),
        queued_p50_s=_median(completed, lambda one: one.queued_s),
        queued_p95_s=percentile(_observed(completed, lambda one: one.queued_s), 0.95),
        num_completed=counts["completed"],
        num_cancelled=counts["cancelled"],
        num_refused=counts["refused"],
        num_late=counts["late"],
        deadlines_met=statistics.fmean(met) if met else None,
    )


def percentile(values: Sequence[float], share: float) -> float | None:
    """Returns the smallest value that at least `share` of the values do not exceed."""
    return float(np.quantile(values, share, method="inverted_cdf")) if values else None


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """Returns the least value, the median and the greatest value."""
    ordered = sorted(values)
    return ordered[0], statistics.median(ordered), ordered[-1]


def _observed(outcomes: Iterable[Outcome], read: Callable[[Outcome], float | None]) -> list[float]:
    return [value for value in map(read, outcomes) if value is not None]


def _median(outcomes: Iterable[Outcome], read: Callable[[Outcome], float | None]) -> float | None:
    return percentile(_observed(outcomes, read), 0.5)
