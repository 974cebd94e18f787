"""How many rows one denoiser call may hold: as told, or the knee that is measured at the start.

Beyond the knee a call takes longer and draws no more images per second: it only delays whoever
joins. It lies at some amount of work, so that smaller pictures may have more rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latentwire_server.engine.policy.policy import Group

DEFAULT_ROWS: Final = 8
LEAST_ROWS: Final = 2
"""One image with guidance."""
MOST_ROWS: Final = 64
_STEP: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _BatchSize:
    num_rows: int
    area: int


class RowBudget:
    """The most rows of a call, by group. Any thread."""

    def __init__(self, told: int | None = None) -> None:
        """Takes what holds for every model and size; None: the knee of each model."""
        self._told = told
        self._batch_sizes: dict[str, _BatchSize] = {}

    def learn(self, group: Group, *, num_rows: int) -> None:
        """Takes in the knee of a model, measured with latents of the group's size."""
        self._batch_sizes[group.model] = _BatchSize(num_rows=num_rows, area=group.area)

    def knows(self, model_id: str) -> bool:
        """Returns whether a model need not be measured: it was, or all is told."""
        return self._told is not None or model_id in self._batch_sizes

    def of(self, group: Group) -> int:
        """Returns the most rows of one call."""
        if self._told is not None:
            return self._told
        batch_size = self._batch_sizes.get(group.model)
        if batch_size is None:
            return DEFAULT_ROWS
        num_rows = min(
            max(batch_size.num_rows * batch_size.area // group.area, LEAST_ROWS), MOST_ROWS
        )
        # What is compiled has powers of two.
        return 1 << (num_rows.bit_length() - 1)

    def sizes(self, group: Group, *, is_reproducible: bool) -> list[int]:
        """Returns the numbers of rows that are worth compiling for, the largest first.

        Powers of two, and between larger ones every fourth or every quarter.
        """
        most = self.of(group)
        if is_reproducible:
            return [most]
        powers = [1 << exponent for exponent in range(most.bit_length())]
        between = {
            size
            for power in powers
            if power >= 2 * _STEP
            for size in range(power, min(2 * power, most), max(_STEP, power // 4))
        }
        return sorted({*powers, *between, most}, reverse=True)
