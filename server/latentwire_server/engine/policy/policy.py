"""Chooses the next work of the device: pure arithmetic, no torch, no clock.

Called on the device thread. Trajectories of one *group* (same model, same latent size, equally long
encoded prompts, same adapters at the same scales) can share a denoiser call. Groups take turns by
the device time that they received, so that large images don't crowd out small ones; inside a
group, the trajectory that was served longest ago goes first.
Higher priorities go first, and among equals urgent deadlines, the earliest first; except that
every ``FLOOR_INTERVAL``-th choice ignores both: a flood of important work slows the rest down and
never stops it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from latentwire_server.engine.request import Adapters

FLOOR_INTERVAL = 4
"""Every so many choices, priorities and deadlines do not count."""

LOWERED_CALLS = 100
"""How many calls of a group stay smaller after one ran out of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The properties that trajectories must have in common to share a denoiser call."""

    model: str
    height: int
    """Of the latents, as is the width."""
    width: int
    num_chunks: int = 1
    """The length of the encoded prompts, in lengths of the text encoder."""
    adapters: Adapters = ()
    """Part of the group because they change the denoiser itself."""

    @property
    def kind(self) -> Group:
        """A group that stands for all whose calls take equally long, whatever their adapters."""
        return replace(self, adapters=(("", 1.0),)) if self.adapters else self

    @property
    def area(self) -> int:
        """Height times width."""
        return self.height * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A generation that waits for the device, as the policy sees it."""

    id: str
    priority: int = 0
    urgent_deadline: float | None = None
    """The deadline, if it is urgent; on any clock that all candidates share."""

    @property
    def urgency(self) -> tuple[int, float]:
        """Sorts the most urgent first."""
        deadline = math.inf if self.urgent_deadline is None else self.urgent_deadline
        return -self.priority, deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Waiting):
    """A trajectory as the policy sees it."""

    group: Group
    num_rows: int
    """Rows that one evaluation of it takes."""
    needs_decoding: bool = False
    """Whether it waits for the decoder, not for the denoiser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoise:
    """Evaluate these trajectories together: one, or as many as fit one call."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Decode the next image of this trajectory."""

    id: str


Work = Denoise | Decode

_Account = tuple[Group, int, bool]
"""Kind of group, priority, and whether urgent: the time of urgent or important work is not charged
to ordinary work of the same size. Adapters at any scales share one account: with one for each, all
other work would get a smaller share the more of them there were."""


class Policy:
    """Chooses the work of each tick and keeps track of turns."""

    def __init__(self, *, max_rows: Callable[[Group], int], decode_interval_ticks: int = 1) -> None:
        """Creates a policy; ``max_rows`` returns the most rows of a call of a group."""
        self._decode_interval_ticks = decode_interval_ticks
        self._turns: dict[str, int] = {}
        self._next_turn = 0
        self._received_s: dict[_Account, float] = {}
        self._charged: _Account | None = None
        self._denoise_count = 0
        self._decode_count = 0
        self._admission_count = 0
        self._calls_since_decode = 0
        self.row_limit = RowLimit(max_rows=max_rows)

    def choose(self, candidates: Sequence[Candidate]) -> Work | None:
        """Returns the next work, if there is any. Counts its trajectories as served."""
        if not candidates:
            return None
        self._keep_only(candidates)
        to_decode = [candidate for candidate in candidates if candidate.needs_decoding]
        to_denoise = [candidate for candidate in candidates if not candidate.needs_decoding]
        has_waited = self._calls_since_decode >= self._decode_interval_ticks
        if to_decode and (has_waited or not to_denoise):
            self._calls_since_decode = 0
            self._decode_count += 1
            first = self._in_order(to_decode, choice=self._decode_count)[0]
            self._serve([first])
            return Decode(id=first.id)
        self._calls_since_decode += 1
        self._denoise_count += 1
        ordered = self._in_order(to_denoise, choice=self._denoise_count)
        batch = fill(ordered, max_rows=self.row_limit.of(ordered[0].group))
        self._serve(batch)
        return Denoise(ids=tuple(candidate.id for candidate in batch))

    def charge(self, *, seconds: float) -> None:
        """Records how long the device took for the work that was chosen last."""
        if self._charged is not None:
            self._received_s[self._charged] += seconds

    def admit(self, waiting: Sequence[Waiting]) -> str:
        """Returns the id of the waiting generation that starts next.

        Args:
            waiting: The waiting generations, in the order of their arrival.
        """
        self._admission_count += 1
        if self._admission_count % FLOOR_INTERVAL == 0:
            return waiting[0].id
        return min(waiting, key=lambda one: one.urgency).id

    def _in_order(self, candidates: Iterable[Candidate], *, choice: int) -> list[Candidate]:
        by_turn = sorted(
            candidates,
            key=lambda candidate: (
                self._received_s[_account(candidate)],
                self._turns[candidate.id],
            ),
        )
        if choice % FLOOR_INTERVAL == 0:
            return by_turn
        return sorted(by_turn, key=lambda one: one.urgency)

    def _keep_only(self, candidates: Sequence[Candidate]) -> None:
        present = {candidate.id for candidate in candidates}
        for gone in self._turns.keys() - present:
            del self._turns[gone]
        for candidate in candidates:
            if candidate.id not in self._turns:
                self._move_to_end(candidate)
        accounts = dict.fromkeys(map(_account, candidates))
        for closed in self._received_s.keys() - accounts.keys():
            del self._received_s[closed]
        # A newcomer gets no credit for the time before it came.
        least_s = min(self._received_s.values(), default=0.0)
        for account in accounts:
            self._received_s.setdefault(account, least_s)

    def _serve(self, served: Sequence[Candidate]) -> None:
        for candidate in served:
            self._move_to_end(candidate)
        # Only the first one's account: the others of the batch cost little more.
        self._charged = _account(served[0])

    def _move_to_end(self, candidate: Candidate) -> None:
        self._turns[candidate.id] = self._next_turn
        self._next_turn += 1


class RowLimit:
    """The most rows of a call of a group; lowered for a while after one ran out of memory."""

    def __init__(self, *, max_rows: Callable[[Group], int]) -> None:
        """Creates a limit; ``max_rows`` returns that of a group whose calls fit into memory."""
        self._max_rows = max_rows
        self._lowered: dict[Group, int] = {}
        self._calls_left: dict[Group, int] = {}

    def of(self, group: Group) -> int:
        """Returns the most rows of one call of ``group``."""
        lowered = self._lowered.get(group.kind)
        return self._max_rows(group) if lowered is None else lowered

    def lower(self, group: Group, *, failed_rows: int) -> None:
        """Lowers the limit of ``group`` because ``failed_rows`` did not fit."""
        self._lowered[group.kind] = min(self.of(group), max(1, failed_rows // 2))
        self._calls_left[group.kind] = LOWERED_CALLS

    def count_call(self, group: Group) -> None:
        """Counts a call of ``group`` that fitted; enough of them restore the limit."""
        kind = group.kind
        if kind not in self._calls_left:
            return
        self._calls_left[kind] -= 1
        if self._calls_left[kind] <= 0:
            del self._calls_left[kind], self._lowered[kind]


def _account(candidate: Candidate) -> _Account:
    return candidate.group.kind, candidate.priority, candidate.urgent_deadline is not None


def fill(ordered: Sequence[Candidate], *, max_rows: int) -> list[Candidate]:
    """Returns the first candidate, and the next ones of its group that fit into its call."""
    first = ordered[0]
    batch, num_rows = [first], first.num_rows
    for candidate in ordered[1:]:
        if candidate.group == first.group and num_rows + candidate.num_rows <= max_rows:
            batch.append(candidate)
            num_rows += candidate.num_rows
    return batch


def padded_rows(num_rows: int, *, max_rows: int, is_reproducible: bool) -> int:
    """Returns the size of a call of ``num_rows``, padding included.

    In reproducible mode always ``max_rows``. Otherwise nothing is padded here: a model that is
    compiled for few sizes pads by itself.
    """
    return max_rows if is_reproducible else num_rows


def chunks(num_rows: int, *, max_rows: int) -> list[range]:
    """Returns the rows of each call when ``num_rows`` are split into calls of ``max_rows``."""
    return [range(start, min(start + max_rows, num_rows)) for start in range(0, num_rows, max_rows)]
