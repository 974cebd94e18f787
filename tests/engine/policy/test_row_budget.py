"""How many rows a call may hold: as configured, or in proportion to the measured batch size."""

from __future__ import annotations

import pytest

from latentwire_server.engine.policy.policy import Group
from latentwire_server.engine.policy.row_budget import DEFAULT_ROWS, RowBudget


def square(side: int) -> Group:
    return Group(model="m", height=side, width=side)


def test_configured_rows_hold_for_every_size() -> None:
    budget = RowBudget(6)
    budget.set_probed(square(64), num_rows=32)
    assert [budget.of(square(side)) for side in (8, 64, 128)] == [6, 6, 6]


def test_the_default_applies_before_anything_is_measured() -> None:
    assert RowBudget().of(square(64)) == DEFAULT_ROWS


@pytest.mark.parametrize(
    ("side", "expected"), [(64, 8), (32, 32), (16, 64), (128, 2), (256, 2), (96, 2), (48, 8)]
)
def test_smaller_images_may_have_more_rows_and_larger_ones_fewer(side: int, expected: int) -> None:
    budget = RowBudget()
    budget.set_probed(square(64), num_rows=8)
    assert budget.of(square(side)) == expected


@pytest.mark.parametrize(
    ("max_rows", "is_reproducible", "expected"),
    [
        (6, False, [6, 4, 2, 1]),
        (8, False, [8, 4, 2, 1]),
        (32, False, [32, 28, 24, 20, 16, 12, 8, 4, 2, 1]),
        (64, False, [64, 56, 48, 40, 32, 28, 24, 20, 16, 12, 8, 4, 2, 1]),
        (6, True, [6]),
        (1, False, [1]),
    ],
)
def test_only_a_few_sizes_are_compiled(
    max_rows: int, expected: list[int], *, is_reproducible: bool
) -> None:
    budget = RowBudget(max_rows)
    assert budget.sizes(square(64), is_reproducible=is_reproducible) == expected
