"""How large calls may get: as told, or as long as twice the rows draw more per second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import torch

from latentwire_server.engine.row_budget import DEFAULT_ROWS, MOST_ROWS, RowBudget, measure_knee
from tests.fake_faults import above_rows, raising
from tests.fakes import FakeModel

if TYPE_CHECKING:
    from tests.fakes import Call, Fault


def saturating(*, at_rows: int, call_s: float = 0.02) -> Fault:
    """A device that takes as long for one row as for ``at_rows``, and then in proportion."""

    def compute(prediction: torch.Tensor, call: Call) -> torch.Tensor:
        time.sleep(call_s * max(1.0, call.num_rows / at_rows))
        return prediction

    return (lambda call: True), compute


@pytest.mark.parametrize("knee", [2, 8, 16])
def test_the_knee_is_found(knee: int) -> None:
    assert measure_knee(FakeModel(faults=[saturating(at_rows=knee)])) == knee


def test_a_device_that_never_saturates_gets_the_most() -> None:
    assert measure_knee(FakeModel(call_s=0.005)) == MOST_ROWS


def test_where_a_call_takes_seconds_no_larger_one_is_tried() -> None:
    model = FakeModel(call_s=2.1)
    assert measure_knee(model) == 2
    assert [call.num_rows for call in model.calls] == [2]


def test_where_memory_ends_half_of_what_fits_is_left_for_decoding() -> None:
    out_of_memory = raising(lambda: torch.OutOfMemoryError("CUDA out of memory"))
    model = FakeModel(call_s=0.002, faults=[(above_rows(16), out_of_memory)])
    assert measure_knee(model) == 8


def test_a_model_that_cannot_draw_one_image_says_so() -> None:
    broken = raising(lambda: ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        measure_knee(FakeModel(faults=[(above_rows(1), broken)]))


def test_what_is_told_holds_for_every_size() -> None:
    budget = RowBudget(told=6)
    budget.learn("m", num_rows=32, area=64 * 64)
    assert [budget.of("m", area=area) for area in (64, 64 * 64, 128 * 128)] == [6, 6, 6]


def test_before_anything_is_measured_there_is_a_default() -> None:
    assert RowBudget().of("m", area=64 * 64) == DEFAULT_ROWS


@pytest.mark.parametrize(
    ("side", "expected"), [(64, 8), (32, 32), (16, 64), (128, 2), (256, 2), (96, 2), (48, 8)]
)
def test_smaller_pictures_may_have_more_rows(side: int, expected: int) -> None:
    budget = RowBudget()
    budget.learn("m", num_rows=8, area=64 * 64)
    assert budget.of("m", area=side * side) == expected
