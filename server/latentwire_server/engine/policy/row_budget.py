"""How many rows one denoiser call may hold: as configured, or as the batch-size probe measured.

Beyond the probed batch size a call takes longer without computing more rows per second, and only
delays the generations that join later. The batch size stands for an amount of work, so that smaller
images may have more rows.
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
    """The most rows of a denoiser call, by group. Any thread."""

    def __init__(self, max_rows: int | None = None) -> None:
        """Creates a budget of ``max_rows`` for every group; None: the probed size of each model."""
        self._max_rows = max_rows
        self._batch_sizes: dict[str, _BatchSize] = {}

    def set_probed(self, group: Group, *, num_rows: int) -> None:
        """Records the batch size of a model, probed with latents of the group's size."""
        self._batch_sizes[group.model] = _BatchSize(num_rows=num_rows, area=group.area)

    def needs_probe(self, model_id: str) -> bool:
        """Returns whether the limit of a model depends on a probe that has not been made."""
        return self._max_rows is None and model_id not in self._batch_sizes

    def of(self, group: Group) -> int:
        """Returns the most rows of one call of ``group``."""
        if self._max_rows is not None:
            return self._max_rows
        batch_size = self._batch_sizes.get(group.model)
        if batch_size is None:
            return DEFAULT_ROWS
        num_rows = min(
            max(batch_size.num_rows * batch_size.area // group.area, LEAST_ROWS), MOST_ROWS
        )
        # Compiled denoisers have programs for powers of two.
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
