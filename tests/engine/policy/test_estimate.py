"""Expected times from measured calls."""

from __future__ import annotations

from collections import Counter

import pytest

from latentwire_server.engine.policy.estimate import Estimator, WorkLeft, retry_after_s
from latentwire_server.engine.policy.policy import Group
from latentwire_server.engine.policy.row_budget import RowBudget

GROUP = Group(model="fake", height=8, width=8)
WIDE = Group(model="fake", height=8, width=16)


def work(**changes: object) -> WorkLeft:
    fields: dict[str, object] = {
        "group": GROUP,
        "num_rows": 2,
        "num_evaluations": 10,
        "num_decodes": 1,
        **changes,
    }
    return WorkLeft(**fields)  # type: ignore[arg-type]


def measured(*, max_running: int = 2, **seconds_by_rows: float) -> Estimator:
    """Returns an estimator; ``rows2=1.0`` means that calls of two rows take a second."""
    estimator = Estimator(row_budget=RowBudget(8), max_running=max_running, is_reproducible=False)
    for name, seconds in seconds_by_rows.items():
        for _ in range(2):
            num_rows = int(name.removeprefix("rows"))
            estimator.record_call(GROUP, num_rows=num_rows, seconds=seconds)
    for _ in range(2):
        estimator.record_decode(GROUP, seconds=0.5)
    return estimator


def alone_s(estimator: Estimator, wanted: WorkLeft) -> float | None:
    return together_s(estimator, wanted)


def together_s(estimator: Estimator, wanted: WorkLeft, *others: WorkLeft) -> float | None:
    rows = Counter[Group]()
    for one in (wanted, *others):
        rows[one.group] += one.num_rows
    return estimator.remaining_s(wanted, rows=rows)


def test_nothing_is_estimated_before_anything_is_measured() -> None:
    estimator = Estimator(row_budget=RowBudget(8), max_running=1, is_reproducible=False)
    assert alone_s(estimator, work()) is None
    assert estimator.waits_s(running=[work()], queued=[]) == [None]


def test_the_first_call_of_each_kind_is_warm_up_and_not_counted() -> None:
    estimator = Estimator(row_budget=RowBudget(8), max_running=1, is_reproducible=False)
    estimator.record_call(GROUP, num_rows=2, seconds=60.0)
    assert alone_s(estimator, work()) is None
    estimator.record_call(GROUP, num_rows=2, seconds=1.0)
    assert alone_s(estimator, work(num_decodes=0)) == pytest.approx(10.0)


def test_a_lone_generation_takes_its_calls_and_its_decodes() -> None:
    assert alone_s(measured(rows2=1.0), work()) == pytest.approx(10.5)


def test_sharing_calls_makes_each_call_longer() -> None:
    estimator = measured(rows2=1.0, rows4=1.5)
    assert together_s(estimator, work(), work()) == pytest.approx(15.5)


def test_generations_that_cannot_share_a_call_take_equal_shares_of_the_device() -> None:
    estimator = measured(rows2=1.0)
    wide = work(group=WIDE)
    assert together_s(estimator, work(), wide) == pytest.approx(10 * 2 + 0.5)


def test_a_rotated_size_is_another_group() -> None:
    estimator = measured(rows2=1.0)
    tall, wide = (Group(model="fake", height=h, width=w) for h, w in ((16, 4), (4, 16)))
    both = together_s(estimator, work(group=tall, num_decodes=0), work(group=wide))
    assert both == pytest.approx(10 * 2)


def test_a_smaller_call_is_not_counted_as_a_full_one() -> None:
    estimator = measured(rows8=4.0)
    for _ in range(2):
        estimator.record_call(GROUP, num_rows=4, seconds=0.5)
    assert estimator.least_s(work(num_rows=8, num_decodes=0)) == pytest.approx(40.0)


def test_an_unmeasured_call_is_scaled_from_the_nearest_measured_one() -> None:
    estimator = measured(rows2=1.0)
    assert alone_s(estimator, work(num_rows=4, num_decodes=0)) == pytest.approx(20.0)
    assert alone_s(
        estimator, work(group=Group(model="fake", height=8, width=24), num_decodes=0)
    ) == pytest.approx(30.0)
    assert alone_s(estimator, work(group=Group(model="other", height=8, width=8))) is None


def test_measurements_are_smoothed() -> None:
    estimator = measured(rows2=1.0)
    estimator.record_call(GROUP, num_rows=2, seconds=2.0)
    assert alone_s(estimator, work(num_evaluations=1, num_decodes=0)) == pytest.approx(1.2)


def test_the_first_decode_is_warm_up_too() -> None:
    estimator = Estimator(row_budget=RowBudget(8), max_running=1, is_reproducible=False)
    for seconds in (9.0, 1.0):
        estimator.record_call(GROUP, num_rows=2, seconds=seconds)
        estimator.record_decode(GROUP, seconds=seconds)
    assert alone_s(estimator, work(num_evaluations=0)) == pytest.approx(1.0)


def test_the_least_time_ignores_a_stalled_call() -> None:
    estimator = measured(rows2=1.0)
    estimator.record_call(GROUP, num_rows=2, seconds=100.0)
    estimator.record_decode(GROUP, seconds=100.0)
    assert estimator.least_s(work()) == pytest.approx(10.5)


def test_the_least_time_of_an_unmeasured_kind_is_not_guessed() -> None:
    estimator = measured(rows2=1.0)
    assert estimator.least_s(work(num_rows=4)) is None
    assert estimator.least_s(work(group=WIDE)) is None
    assert estimator.least_s(work(group=Group(model="other", height=8, width=8))) is None


def test_there_is_no_wait_while_there_is_a_free_place() -> None:
    assert measured(rows2=1.0).waits_s(running=[work()], queued=[]) == [0.0]


def test_a_free_place_means_no_wait_even_if_no_speed_is_known() -> None:
    estimator = Estimator(row_budget=RowBudget(8), max_running=3, is_reproducible=False)
    assert estimator.waits_s(running=[work()], queued=[work(), work()]) == [0.0, 0.0, None]


def test_the_wait_ends_when_the_first_running_generation_finishes() -> None:
    estimator = measured(rows2=1.0, rows4=1.0)
    running = [work(num_evaluations=4, num_decodes=0), work(num_evaluations=9, num_decodes=0)]
    assert estimator.waits_s(running=running, queued=[]) == [pytest.approx(4.0)]


def test_generations_ahead_in_the_queue_take_free_places_first() -> None:
    estimator = measured(rows2=1.0, rows4=1.0)
    running = [work(num_evaluations=4, num_decodes=0), work(num_evaluations=9, num_decodes=0)]
    queued = [work(num_evaluations=10, num_decodes=0)] * 2
    assert estimator.waits_s(running=running, queued=queued) == pytest.approx([4.0, 9.0, 14.0])


@pytest.mark.parametrize(
    ("wait_s", "expected"), [(None, 1.0), (0.2, 1.0), (7.6, 8.0), (119.0, 119.0), (4000.0, 120.0)]
)
def test_retry_delays_are_whole_seconds(wait_s: float | None, expected: float) -> None:
    assert retry_after_s(wait_s) == expected
