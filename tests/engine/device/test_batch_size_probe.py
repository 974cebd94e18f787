"""The batch-size probe, on a device whose speed the test sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from latentwire_server.engine.device import batch_size_probe
from latentwire_server.engine.device.batch_size_probe import probe_batch_size
from latentwire_server.engine.policy.row_budget import MOST_ROWS
from tests.support.fake_faults import above_rows, raising
from tests.support.fakes import FakeModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.fakes import Call


class Clock:
    """Replaces the ``time`` module; only the device advances it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeModel]:
    """Makes models whose calls take ``seconds(call)``, on their own clock."""
    clock = Clock()
    monkeypatch.setattr(batch_size_probe, "time", clock)

    def build(seconds: Callable[[Call], float]) -> FakeModel:
        def compute(prediction: torch.Tensor, call: Call) -> torch.Tensor:
            clock.now += seconds(call)
            return prediction

        return FakeModel(faults=[((lambda call: True), compute)])

    return build


def probed(model: FakeModel) -> int:
    return probe_batch_size(model, run=lambda work: work())


@pytest.mark.parametrize("rows", [2, 8, 16])
def test_the_batch_size_is_found(device, rows: int) -> None:
    # Constant up to ``rows``, and proportional above.
    assert probed(device(lambda call: 0.3 * max(1.0, call.num_rows / rows))) == rows


def test_short_calls_need_only_keep_their_rate(device) -> None:
    # In proportion from the start: 0.24 s at 16 rows, 0.48 s at 32.
    assert probed(device(lambda call: 0.015 * call.num_rows)) == 16


def test_short_calls_that_lose_rate_are_not_made_longer(device) -> None:
    seconds = {2: 0.02, 4: 0.04, 8: 0.09, 16: 0.18}
    assert probed(device(lambda call: seconds[call.num_rows])) == 4


def test_one_slow_size_among_short_calls_does_not_hide_the_larger_ones(device) -> None:
    seconds = {2: 0.011, 4: 0.030, 8: 0.041, 16: 0.072, 32: 0.145, 64: 0.40}
    assert probed(device(lambda call: seconds[call.num_rows])) == 32


def test_a_disturbed_call_does_not_count(device) -> None:
    seconds = dict.fromkeys((2, 4, 8, 16, 32, 64), 0.02)
    model = device(lambda call: seconds[call.num_rows] * (10 if call.number % 3 else 1))
    assert probed(model) == MOST_ROWS


def test_a_device_that_never_saturates_gets_the_largest_size(device) -> None:
    assert probed(device(lambda call: 0.02)) == MOST_ROWS


def test_no_larger_batch_is_tried_once_a_call_takes_seconds(device) -> None:
    model = device(lambda call: 2.1)
    assert probed(model) == 2
    assert [call.num_rows for call in model.calls] == [2, 2]


def test_a_slow_first_call_is_ignored(device) -> None:
    model = device(lambda call: 5.0 if call.number == 1 else 0.02)
    assert probed(model) == MOST_ROWS


def test_a_far_too_slow_first_call_is_the_only_one(device) -> None:
    model = device(lambda call: 21.0)
    assert probed(model) == 2
    assert len(model.calls) == 1


def test_running_out_of_memory_halves_the_size_to_leave_room_for_decoding(device) -> None:
    model = device(lambda call: 0.02)
    out_of_memory = raising(lambda: torch.OutOfMemoryError("CUDA out of memory"))
    model.faults.append((above_rows(16), out_of_memory))
    assert probed(model) == 8


def test_a_model_that_cannot_generate_one_image_raises_its_error(device) -> None:
    model = device(lambda call: 0.02)
    model.faults.append((above_rows(1), raising(lambda: ValueError("broken"))))
    with pytest.raises(ValueError, match="broken"):
        probed(model)
