"""How long work takes, learnt from the calls that were made.

The device thread records, both threads ask: the tables hold plain floats, and a reader that sees a
figure of one call ago is well served. The model is simple on purpose:

* the seconds of a denoiser call are kept per (model, latent area, rows) as an exponentially
  weighted mean, decodes per (model, latent area). The first call of a kind warms up and is not
  counted. A kind that was never measured is scaled from the nearest that was, by rows and area;
* what is promised follows the mean, what is refused the least: a refused request makes no calls, so
  a mean that one stalled call had spoilt would refuse for ever;
* the device serves *rounds*: in one round every running row is evaluated once. A generation needs
  as many rounds as evaluations, plus its decodes;
* the queue is a line for ``max_running`` places, each free when its generation's rounds are over.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from latentwire_server.engine.policy import Group, chunks, padded_rows

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from latentwire_server.engine.row_budget import RowBudget

SMOOTHING = 0.2
"""Weight of the newest call in the mean."""

KindT = TypeVar("KindT", bound="Hashable")

MIN_RETRY_S = 1.0
MAX_RETRY_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkLeft:
    """The device work that a generation still needs."""

    group: Group
    num_rows: int
    num_evaluations: int
    num_decodes: int


class Estimator:
    """Turns measured calls into expected times. ``None`` means that nothing was measured yet."""

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
        """Takes in that a denoiser call of ``num_rows``, padding included, took ``seconds``."""
        kind = (group, num_rows)
        self._record(kind, seconds, mean_s=self._call_s, least_s=self._least_call_s)

    def record_decode(self, group: Group, *, seconds: float) -> None:
        """Takes in that the device was busy for ``seconds`` with finishing one image."""
        self._record(group, seconds, mean_s=self._decode_s, least_s=self._least_decode_s)

    def least_s(self, work: WorkLeft) -> float | None:
        """Returns the least time that ``work`` can take: alone, and as fast as was ever measured.

        ``None`` where calls of its kind were never measured: nothing is extrapolated here.
        """
        round_s = 0.0
        for call in chunks(work.num_rows, max_rows=self._row_budget.of(work.group)):
            kind = (work.group, self._padded(len(call), group=work.group))
            if kind not in self._least_call_s:
                return None
            round_s += self._least_call_s[kind]
        decode_s = self._least_decode_s.get(work.group, 0.0)
        return work.num_evaluations * round_s + work.num_decodes * decode_s

    def remaining_s(self, work: WorkLeft, *, rows: Mapping[Group, int]) -> float | None:
        """Returns how long ``work`` takes.

        Args:
            work: what is left of it.
            rows: what one round evaluates, by group, ``work``'s own rows among it.
        """
        round_s = self._round_s(work.group, rows=rows)
        if round_s is None:
            return None
        decode_s = self._decode_s.get(work.group, round_s)
        return work.num_evaluations * round_s + work.num_decodes * decode_s

    def waits_s(
        self, *, running: Sequence[WorkLeft], queued: Sequence[WorkLeft]
    ) -> list[float | None]:
        """Returns how long each of the ``queued`` waits for a place, and one who comes after them.

        Args:
            running: what has a place.
            queued: what waits, in the order in which it is served.

        Returns:
            One figure more than ``queued`` has members.
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
        known = [seconds for seconds in (*free_at, *run_s) if seconds is not None]
        if len(known) < len(free_at) + len(run_s):
            return [0.0 if place < num_free else None for place in range(len(queued) + 1)]
        places = known[: len(running)] + [0.0] * num_free
        heapq.heapify(places)
        waits: list[float | None] = [places[0]]
        for seconds in known[len(running) :]:
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

    def _round_s(self, group: Group, *, rows: Mapping[Group, int]) -> float | None:
        """Returns the time from one evaluation of the group's members to their next."""
        own_s = 0.0
        for call in chunks(rows[group], max_rows=self._row_budget.of(group)):
            seconds = self._seconds_of_call(group, num_rows=len(call))
            if seconds is None:
                return None
            own_s += seconds
        # The policy gives each group as much of the device.
        return own_s * len(rows)

    def _seconds_of_call(self, group: Group, *, num_rows: int) -> float | None:
        wanted = self._padded(num_rows, group=group)
        if (group, wanted) in self._call_s:
            return self._call_s[group, wanted]
        measured = [kind for kind in list(self._call_s) if kind[0].model == group.model]
        if not measured:
            return None
        nearest, nearest_rows = min(
            measured,
            key=lambda kind: (
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


def retry_after_s(wait_s: float | None) -> float:
    """Returns what to tell a caller who comes too early: whole seconds, 1 to 120."""
    if wait_s is None:
        return MIN_RETRY_S
    return float(min(max(round(wait_s), MIN_RETRY_S), MAX_RETRY_S))
