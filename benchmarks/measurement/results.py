"""The figures of one workload, as they are written to results.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.measurement.agreement import Agreement
    from benchmarks.measurement.interruption import Interrupted
    from benchmarks.measurement.overhead import Overhead
    from benchmarks.measurement.summary import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One loop of one system in one round."""

    system: str
    load: str
    round: int
    summary: Summary
    rows_per_call: float | None = None
    occupancy: float | None = None
    """Rows of the denoiser calls over the rows that they had room for, 0 to 1."""
    peak_memory_bytes: int | None = None
    memory_after_bytes: int | None = None
    """The server's memory once it is idle again."""


@dataclass(slots=True, kw_only=True)
class Result:
    """All measurements of one workload."""

    workload: str
    service: dict[str, str] = field(default_factory=dict)
    """How the server ran."""
    least_image_s: float | None = None
    """The denoiser's time for an average image of the mix, at the rates of the device's ceiling."""
    agreements: dict[str, Agreement] = field(default_factory=dict)
    """By baseline and kind."""
    measurements: list[Measurement] = field(default_factory=list)
    interruptions: list[Interrupted] = field(default_factory=list)
    calls_after_cancel: list[int] = field(default_factory=list)
    """Denoiser calls that ended after the last step that a leaving client saw."""
    overheads: list[Overhead] = field(default_factory=list)
