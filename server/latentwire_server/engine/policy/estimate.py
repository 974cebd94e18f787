"""Estimates how long work takes, from the denoiser calls and decodes that were measured.

The device thread records, both threads ask: the tables hold plain floats, and a figure that is one
call old is good enough. The model is simple on purpose:

* the seconds of a denoiser call are kept per (model, latent area, rows) as an exponentially
  weighted mean, those of a decode per (model, latent area). The first call of a kind warms up and
  is not counted. A kind that was never measured is scaled from the nearest one by rows and area;
* promises follow the mean, refusals the shortest measured time: a refused request makes no calls,
  so that a mean spoilt by one stalled call would never recover;
* the device works in *rounds*: in one round every running row is evaluated once. A generation needs
  as many rounds as evaluations, plus its decodes;
* the queue is a line for ``max_running`` places; a place is free once its generation's rounds are
  over.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from latentwire_server.engine.policy.policy import Group, chunks, padded_rows

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from latentwire_server.engine.policy.row_budget import RowBudget

SMOOTHING = 0.2
"""Weight of the newest call in the mean."""

KindT = TypeVar("KindT", bound="Hashable")

DEADLINE_MARGIN = 1.5
"""A deadline is urgent unless it leaves this many times the expected time."""

MIN_RETRY_S = 1.0
MAX_RETRY_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseWork:
    """The denoiser's work in one phase of a generation."""

    group: Group
    num_evaluations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkLeft:
    """The device work that a generation still needs."""

    group: Group
    num_rows: int
    num_evaluations: int
    num_decodes: int
    later: tuple[PhaseWork, ...] = ()
    """The work of the phases after the current one."""

    @classmethod
    def of(
        cls, phases: Sequence[PhaseWork], *, num_rows: int, num_done: int, num_decodes: int
    ) -> WorkLeft:
        """Returns the work that is left of ``phases`` after ``num_done`` evaluations."""
        left: list[PhaseWork] = []
        for phase in phases:
            rest = max(0, phase.num_evaluations - num_done)
            num_done = max(0, num_done - phase.num_evaluations)
            left.append(PhaseWork(group=phase.group, num_evaluations=rest))
        current, *later = [phase for phase in left if phase.num_evaluations] or left[-1:]
        return cls(
            group=current.group,
            num_rows=num_rows,
            num_evaluations=current.num_evaluations,
            num_decodes=num_decodes,
            later=tuple(later),
        )

    @property
    def phases(self) -> tuple[PhaseWork, ...]:
        """The work that is left in each phase."""
        return PhaseWork(group=self.group, num_evaluations=self.num_evaluations), *self.later


class Estimator:
    """Turns measured calls into expected times; ``None``: nothing has been measured yet."""

    def __init__(self, *, row_budget: RowBudget, max_running: int, is_reproducible: bool) -> None:
        self._row_budget = row_budget
        self._max_running = max_running
        self._is_reproducible = is_reproducible
        self._call_s: dict[tuple[Group, int], float] = {}
        self._decode_s: dict[Group, float] = {}
        self._least_call_s: dict[tuple[Group, int], float] = {}
        self._least_decode_s: dict[Group, float] = {}
        self._warmed_up: set[Hashable] = set()

    def record_call(self, group: Group, *, num_rows: int, seconds: float) -> None:
        """Records the time of a denoiser call of ``num_rows``, padding included."""
        kind = (group.kind, num_rows)
        self._record(kind, seconds, mean_s=self._call_s, least_s=self._least_call_s)

    def record_decode(self, group: Group, *, seconds: float) -> None:
        """Records how long finishing one image kept the device busy."""
        self._record(group.kind, seconds, mean_s=self._decode_s, least_s=self._least_decode_s)

    def least_s(self, work: WorkLeft) -> float | None:
        """Returns the least time of ``work``: alone, at the highest speed ever measured.

        ``None`` if calls of its kind were never measured: nothing is extrapolated here.
        """
        least_s = 0.0
        for phase in work.phases:
            group = phase.group
            for call in chunks(work.num_rows, max_rows=self._row_budget.of(group)):
                kind = (group.kind, self._padded(len(call), group=group))
                if kind not in self._least_call_s:
                    return None
                least_s += phase.num_evaluations * self._least_call_s[kind]
        decode_s = self._least_decode_s.get(work.phases[-1].group.kind, 0.0)
        return least_s + work.num_decodes * decode_s

    def remaining_s(self, work: WorkLeft, *, rows: Mapping[Group, int]) -> float | None:
        """Returns how long ``work`` takes beside the other running work.

        Args:
            work: The work.
            rows: The rows that one round evaluates, by group, those of ``work`` included.
        """
        rounds_s = [
            self._round_s(phase.group, num_rows=max(_kind_rows(rows, phase.group), work.num_rows))
            for phase in work.phases
        ]
        own_s = rounds_s[0]
        if own_s is None:
            return None
        # The policy gives each kind of group an equal share of the device.
        num_groups = max(1, len({group.kind for group in rows}))
        remaining_s = 0.0
        for phase, measured_s in zip(work.phases, rounds_s, strict=True):
            # A later phase that was never measured counts as fast as the one before.
            own_s = own_s if measured_s is None else measured_s
            remaining_s += phase.num_evaluations * own_s * num_groups
        decode_s = self._decode_s.get(work.phases[-1].group.kind, own_s * num_groups)
        return remaining_s + work.num_decodes * decode_s

    def is_urgent(self, work: WorkLeft, *, left_s: float, rows: Mapping[Group, int]) -> bool:
        """Returns whether fair turns may miss a deadline that the whole device would still meet.

        Args:
            work: The work before the deadline.
            left_s: The time until the deadline.
            rows: The rows that one round evaluates, by group, those of ``work`` included.
        """
        least_s = self.least_s(work)
        if least_s is not None and least_s > left_s:
            return False  # Too late: the other generations shall lose no time by it.
        fair_s = self.remaining_s(work, rows=rows)
        return fair_s is None or DEADLINE_MARGIN * fair_s >= left_s

    def waits_s(
        self, *, running: Sequence[WorkLeft], queued: Sequence[WorkLeft]
    ) -> list[float | None]:
        """Returns how long each of ``queued`` waits for a place, and how long one more would wait.

        Args:
            running: The work that has a place.
            queued: The work that waits, in the order of service.

        Returns:
            One more figure than ``queued`` has members.
        """
        num_free = max(0, self._max_running - len(running))
        rows: Counter[Group] = Counter()
        for work in running:
            rows[work.group] += work.num_rows
        free_at = [self.remaining_s(work, rows=rows) for work in running]
        num_places = min(self._max_running, len(running) + len(queued))
        run_s = [
            self.remaining_s(work, rows={work.group: num_places * work.num_rows}) for work in queued
        ]
        measured = [seconds for seconds in (*free_at, *run_s) if seconds is not None]
        if len(measured) < len(free_at) + len(run_s):
            return [0.0 if place < num_free else None for place in range(len(queued) + 1)]
        places = measured[: len(running)] + [0.0] * num_free
        heapq.heapify(places)
        waits: list[float | None] = [places[0]]
        for seconds in measured[len(running) :]:
            heapq.heapreplace(places, places[0] + seconds)
            waits.append(places[0])
        return waits

    def _record(
        self,
        kind: KindT,
        seconds: float,
        *,
        mean_s: dict[KindT, float],
        least_s: dict[KindT, float],
    ) -> None:
        if kind not in self._warmed_up:
            self._warmed_up.add(kind)
            return
        mean = mean_s.get(kind, seconds)
        mean_s[kind] = mean + SMOOTHING * (seconds - mean)
        least_s[kind] = min(seconds, least_s.get(kind, seconds))

    def _round_s(self, group: Group, *, num_rows: int) -> float | None:
        """Returns how long one evaluation of all members of a group takes."""
        own_s = 0.0
        for call in chunks(num_rows, max_rows=self._row_budget.of(group)):
            seconds = self._seconds_of_call(group, num_rows=len(call))
            if seconds is None:
                return None
            own_s += seconds
        return own_s

    def _seconds_of_call(self, group: Group, *, num_rows: int) -> float | None:
        wanted = self._padded(num_rows, group=group)
        if (group.kind, wanted) in self._call_s:
            return self._call_s[group.kind, wanted]
        measured = [kind for kind in list(self._call_s) if kind[0].model == group.model]
        if not measured:
            return None
        nearest, nearest_rows = min(
            measured,
            key=lambda kind: (
                kind[0] != group.kind,
                kind[0].area != group.area,
                abs(kind[0].area - group.area),
                abs(kind[1] - wanted),
            ),
        )
        seconds = self._call_s[nearest, nearest_rows]
        return seconds * (group.area * wanted) / (nearest.area * nearest_rows)

    def _padded(self, num_rows: int, *, group: Group) -> int:
        return padded_rows(
            num_rows,
            max_rows=self._row_budget.of(group),
            is_reproducible=self._is_reproducible,
        )


def _kind_rows(rows: Mapping[Group, int], group: Group) -> int:
    """Returns the rows of a round in all groups of one kind, which share its turns."""
    return sum(num_rows for other, num_rows in rows.items() if other.kind == group.kind)


def retry_after_s(wait_s: float | None) -> float:
    """Returns the retry delay for a caller that finds no room: whole seconds, 1 to 120."""
    if wait_s is None:
        return MIN_RETRY_S
    return float(min(max(round(wait_s), MIN_RETRY_S), MAX_RETRY_S))
