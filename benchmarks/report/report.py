"""Reports results: as tables for the terminal and in Markdown, and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from rich.table import Table

from benchmarks.load import SERVICE
from benchmarks.measurement.summary import spread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.measurement.results import Measurement, Result

_SPEED: Final = (
    "images/s",
    "ratio",
    "of ceiling",
    "p50 s",
    "p95 s",
    "p99 s",
    "first progress s",
    "first preview s",
)
_STATE: Final = (
    "queued p50 s",
    "queued p95 s",
    "rows/call",
    "occupancy",
    "peak GiB",
    "GiB after",
    "deadlines met",
    "cancelled",
    "refused",
    "late",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A table before it is rendered. The first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def for_terminal(self) -> Table:
        """Returns a table that rich can print."""
        table = Table(title=self.title)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def as_markdown(self) -> str:
        """Returns a table in GitHub's Markdown."""
        rule = ("---", *("---:" for _ in self.columns[1:]))
        lines = ["| " + " | ".join(row) + " |" for row in (self.columns, rule, *self.rows)]
        return "\n".join(lines)


def sheets(result: Result) -> list[Sheet]:
    """Returns two tables with medians over all rounds: the systems' speed, and their state."""
    speed, state = [], []
    for load in dict.fromkeys(one.load for one in result.measurements):
        of_load = [one for one in result.measurements if one.load == load]
        service = [one for one in of_load if one.system == SERVICE]
        for system in dict.fromkeys(one.system for one in of_load):
            own = [one for one in of_load if one.system == system]
            ratio = "" if system == SERVICE else _ratio(service, own)
            least_s = result.least_image_s
            speed.append((f"{load}, {system}", *_speed(own, ratio=ratio, least_image_s=least_s)))
            state.append((f"{load}, {system}", *_state(own)))
    named = (
        (f"{result.workload}: speed", _SPEED, speed),
        (f"{result.workload}: state", _STATE, state),
    )
    return [
        Sheet(title=title, columns=("load", *columns), rows=rows) for title, columns, rows in named
    ]


def markdown(results: Sequence[Result], machine: dict[str, str]) -> str:
    """Returns all results as a page for the documentation."""
    parts = [_list(machine)]
    for result in results:
        parts += [f"## {result.workload}", _list(result.service)]
        parts += [sheet.as_markdown() for sheet in sheets(result)]
        parts.append("\n".join(f"- {note}" for note in notes(result)))
    return "\n\n".join(part for part in parts if part) + "\n"


def caption(description: dict[str, str]) -> str:
    """Returns a description on one line."""
    return ", ".join(f"{name} {value}" for name, value in description.items() if value)


def notes(result: Result) -> list[str]:
    """Returns sentences on what fits no table: cancelling, overhead, and interruptions."""
    sentences = []
    if result.calls_after_cancel:
        least, median, greatest = spread(result.calls_after_cancel)
        sentences.append(
            "denoiser calls from a client's leaving to its rows being free:"
            f" {median:g} ({least}-{greatest})"
        )
    if result.overheads:
        least, median, greatest = spread(one.share for one in result.overheads)
        step_s = spread(one.engine_step_s for one in result.overheads)[1]
        sentences.append(
            f"the service, read slowly, adds {median:.1%} ({least:.1%}-{greatest:.1%}) to its"
            f" engine's step of {step_s * 1e3:.1f} ms"
        )
    for system in dict.fromkeys(one.system for one in result.interruptions):
        rows = [one for one in result.interruptions if one.system == system]
        short_s = spread(one.short_s for one in rows)[1]
        alone_s = spread(one.short_alone_s for one in rows)[1]
        slowdown = spread(one.slowdown for one in rows)[1]
        sentences.append(
            f"{system}: a short request that meets a long one takes {short_s:.2f} s, alone"
            f" {alone_s:.2f} s; the long one loses {slowdown:.2f} of the latter"
        )
    return sentences


def ratios(own: Sequence[Measurement], others: Sequence[Measurement]) -> list[float]:
    """Returns images per second of `own` over those of `others`, round by round."""
    theirs = {one.round: one.summary.images_per_s for one in others}
    return [one.summary.images_per_s / theirs[one.round] for one in own if theirs.get(one.round)]


def write_json(path: Path, results: Sequence[Result], machine: dict[str, str]) -> None:
    """Writes all results, and the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "results": [asdict(result) for result in results]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def _speed(
    own: Sequence[Measurement], *, ratio: str, least_image_s: float | None
) -> tuple[str, ...]:
    least, median, greatest = spread(one.summary.images_per_s for one in own)
    times = (
        "latency_p50_s",
        "latency_p95_s",
        "latency_p99_s",
        "first_progress_p50_s",
        "first_preview_p50_s",
    )
    return (
        f"{median:.3f} ({least:.3f}-{greatest:.3f})",
        ratio,
        "" if least_image_s is None else f"{median * least_image_s:.0%}",
        *(_median([getattr(one.summary, name) for one in own], "{:.2f}") for name in times),
    )


def _state(own: Sequence[Measurement]) -> tuple[str, ...]:
    counts = ("num_cancelled", "num_refused", "num_late")
    return (
        _median([one.summary.queued_p50_s for one in own], "{:.2f}"),
        _median([one.summary.queued_p95_s for one in own], "{:.2f}"),
        _median([one.rows_per_call for one in own], "{:.1f}"),
        _median([one.occupancy for one in own], "{:.0%}"),
        _median([_gib(one.peak_memory_bytes) for one in own], "{:.2f}"),
        _median([_gib(one.memory_after_bytes) for one in own], "{:.2f}"),
        _median([one.summary.deadlines_met for one in own], "{:.0%}"),
        *(str(sum(getattr(one.summary, name) for one in own)) for name in counts),
    )


def _ratio(service: Sequence[Measurement], others: Sequence[Measurement]) -> str:
    values = ratios(service, others)
    if not values:
        return ""
    least, median, greatest = spread(values)
    return f"{median:.2f} ({least:.2f}-{greatest:.2f})"


def _list(description: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in description.items() if value)


def _median(values: Sequence[float | None], form: str) -> str:
    observed = [value for value in values if value is not None]
    return form.format(spread(observed)[1]) if observed else ""


def _gib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / 2**30
