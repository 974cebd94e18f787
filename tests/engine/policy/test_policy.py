"""The policy as arithmetic: which trajectories share a call, and that none waits forever."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentwire_server.engine.policy.policy import (
    FLOOR_INTERVAL,
    LOWERED_CALLS,
    Candidate,
    Decode,
    Denoise,
    Group,
    Policy,
    RowLimit,
    chunks,
    padded_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SQUARE = Group(model="m", height=64, width=64)
LARGE = Group(model="m", height=128, width=128)
OTHER_MODEL = Group(model="other", height=64, width=64)

crowds = st.lists(
    st.builds(
        lambda group, num_rows, priority: (group, num_rows, priority),
        st.sampled_from([SQUARE, LARGE, OTHER_MODEL]),
        st.integers(1, 20),
        st.integers(-2, 2),
    ),
    min_size=1,
    max_size=12,
).map(
    lambda parts: [
        Candidate(id=f"t{index}", group=group, num_rows=num_rows, priority=priority)
        for index, (group, num_rows, priority) in enumerate(parts)
    ]
)


def always(max_rows: int) -> Callable[[object], int]:
    return lambda group: max_rows


def candidate(id_: str, **changes: object) -> Candidate:
    fields: dict[str, object] = {"id": id_, "group": SQUARE, "num_rows": 2, **changes}
    return Candidate(**fields)  # type: ignore[arg-type]


def denoised(policy: Policy, candidates: list[Candidate]) -> tuple[str, ...]:
    work = policy.choose(candidates)
    assert isinstance(work, Denoise)
    return work.ids


def test_without_candidates_there_is_no_work() -> None:
    assert Policy(max_rows=always(8)).choose([]) is None


@given(crowds, st.integers(1, 16))
@settings(max_examples=50)
def test_a_call_holds_one_group_and_no_more_rows_than_fit(
    crowd: list[Candidate], max_rows: int
) -> None:
    policy = Policy(max_rows=always(max_rows))
    by_id = {one.id: one for one in crowd}
    for _ in range(20):
        batch = [by_id[id_] for id_ in denoised(policy, crowd)]
        assert len({one.id for one in batch}) == len(batch)
        assert len({one.group for one in batch}) == 1
        assert len(batch) == 1 or sum(one.num_rows for one in batch) <= max_rows


@given(crowds, st.integers(1, 16))
@settings(max_examples=50)
def test_no_trajectory_waits_longer_than_a_round_of_the_floor(
    crowd: list[Candidate], max_rows: int
) -> None:
    policy = Policy(max_rows=always(max_rows))
    # Groups take turns; inside a group the trajectory served longest ago goes first.
    sizes = Counter((one.group, one.priority) for one in crowd).values()
    bound = FLOOR_INTERVAL * (len(sizes) * max(sizes) + 1)
    last_served = dict.fromkeys((one.id for one in crowd), 0)
    for tick in range(1, 3 * bound):
        for id_ in denoised(policy, crowd):
            last_served[id_] = tick
        policy.charge(seconds=1.0)
        longest = max(tick - served for served in last_served.values())
        assert longest <= bound


@given(crowds, st.integers(1, 16))
@settings(max_examples=50)
def test_equal_trajectories_advance_at_the_same_pace(crowd: list[Candidate], max_rows: int) -> None:
    equals = [candidate(one.id, group=one.group, num_rows=one.num_rows) for one in crowd]
    policy = Policy(max_rows=always(max_rows))
    # Whoever has waited longest is always served: after n rounds each had at least n turns.
    served = Counter[str]()
    for _ in range(4 * len(equals)):
        served.update(denoised(policy, equals))
    assert min(served[one.id] for one in equals) >= 4


@given(crowds)
@settings(max_examples=50)
def test_choices_are_deterministic(crowd: list[Candidate]) -> None:
    one, other = Policy(max_rows=always(8)), Policy(max_rows=always(8))
    assert [one.choose(crowd) for _ in range(20)] == [other.choose(crowd) for _ in range(20)]


def test_trajectories_that_fit_share_a_call() -> None:
    crowd = [candidate(id_) for id_ in "abcd"]
    assert denoised(Policy(max_rows=always(8)), crowd) == ("a", "b", "c", "d")


def test_trajectories_that_do_not_fit_together_take_turns() -> None:
    policy = Policy(max_rows=always(4))
    crowd = [candidate(id_) for id_ in "abc"]
    assert [denoised(policy, crowd) for _ in range(3)] == [("a", "b"), ("c", "a"), ("b", "c")]


def test_groups_that_cannot_share_a_call_take_turns() -> None:
    policy = Policy(max_rows=always(8))
    crowd = [
        candidate("a"),
        candidate("b"),
        candidate("wide", group=Group(model="m", height=32, width=128)),
    ]
    assert [denoised(policy, crowd) for _ in range(4)] == [("a", "b"), ("wide",)] * 2


def test_a_trajectory_with_more_rows_than_fit_is_alone() -> None:
    policy = Policy(max_rows=always(8))
    crowd = [candidate("large", num_rows=20), candidate("small")]
    assert [denoised(policy, crowd) for _ in range(2)] == [("large",), ("small",)]


def test_a_gap_too_small_for_the_next_trajectory_is_filled_by_a_later_one() -> None:
    crowd = [candidate("a", num_rows=6), candidate("b", num_rows=4), candidate("c", num_rows=2)]
    assert denoised(Policy(max_rows=always(8)), crowd) == ("a", "c")


def test_higher_priority_goes_first_and_leaves_the_floor_to_the_rest() -> None:
    policy = Policy(max_rows=always(2))
    crowd = [candidate("low"), candidate("high", priority=5)]
    served = Counter[str]()
    for _ in range(10 * FLOOR_INTERVAL):
        served.update(denoised(policy, crowd))
    assert served == {"high": 10 * (FLOOR_INTERVAL - 1), "low": 10}


def test_groups_share_the_device_by_time_not_by_turns() -> None:
    policy = Policy(max_rows=always(8))
    crowd = [candidate("small"), candidate("large", group=LARGE)]
    cost_s = {"small": 1.0, "large": 4.0}
    served = Counter[str]()
    for _ in range(100):
        (id_,) = denoised(policy, crowd)
        served[id_] += 1
        policy.charge(seconds=cost_s[id_])
    assert served == {"small": 80, "large": 20}


def test_a_late_group_gets_no_credit_for_earlier_time() -> None:
    policy = Policy(max_rows=always(8))
    for _ in range(10):
        denoised(policy, [candidate("old")])
        policy.charge(seconds=1.0)
    crowd = [candidate("old"), candidate("new", group=LARGE)]
    served = Counter[str]()
    for _ in range(10):
        (id_,) = denoised(policy, crowd)
        served[id_] += 1
        policy.charge(seconds=1.0)
    assert served == {"old": 5, "new": 5}


@pytest.mark.parametrize("urgent", [{"priority": 5}, {"urgent_deadline": 1.0}])
def test_time_of_urgent_work_is_not_charged_to_ordinary_work_of_its_size(
    urgent: dict[str, Any],
) -> None:
    policy = Policy(max_rows=always(2))
    crowd = [candidate("flood", **urgent), candidate("same"), candidate("other", group=LARGE)]
    served = Counter[str]()
    for _ in range(40 * FLOOR_INTERVAL):
        served.update(denoised(policy, crowd))
        policy.charge(seconds=1.0)
    assert served["same"] >= 10
    assert served["other"] >= 10
    # When the flood ends, neither group gets the device to itself to make up for it.
    after = Counter[str]()
    for _ in range(20):
        after.update(denoised(policy, crowd[1:]))
        policy.charge(seconds=1.0)
    assert min(after["same"], after["other"]) >= 8


def test_urgent_deadlines_go_first_and_leave_the_floor_to_the_rest() -> None:
    policy = Policy(max_rows=always(2))
    crowd = [
        candidate("patient"),
        candidate("later", urgent_deadline=20.0),
        candidate("sooner", urgent_deadline=10.0),
    ]
    served = Counter[str]()
    for _ in range(10 * FLOOR_INTERVAL):
        served.update(denoised(policy, crowd))
    assert served["sooner"] >= 10 * (FLOOR_INTERVAL - 1)
    assert served["patient"] >= 4
    assert served["later"] >= 4


def test_priority_counts_more_than_a_deadline() -> None:
    crowd = [candidate("hurried", urgent_deadline=1.0), candidate("important", priority=1)]
    assert denoised(Policy(max_rows=always(2)), crowd) == ("important",)


def test_a_newcomer_waits_behind_the_queue() -> None:
    policy = Policy(max_rows=always(2))
    assert denoised(policy, [candidate("a"), candidate("b")]) == ("a",)
    newcomers = [candidate("a"), candidate("b"), candidate("new")]
    assert [denoised(policy, newcomers) for _ in range(3)] == [("b",), ("a",), ("new",)]


def test_a_stream_of_short_newcomers_does_not_starve_a_long_trajectory() -> None:
    policy = Policy(max_rows=always(2))
    served = Counter[str]()
    for tick in range(40):
        crowd = [candidate("long"), candidate(f"short {tick}"), candidate(f"short {tick + 1}")]
        served.update(denoised(policy, crowd))
    assert served["long"] >= 10


def test_decodes_and_calls_alternate() -> None:
    policy = Policy(max_rows=always(8))
    crowd = [candidate("a"), candidate("done", needs_decoding=True)]
    works = [policy.choose(crowd) for _ in range(4)]
    assert works == [Denoise(ids=("a",)), Decode(id="done")] * 2


def test_decodes_keep_the_configured_interval() -> None:
    policy = Policy(max_rows=always(8), decode_interval_ticks=3)
    crowd = [candidate("a"), candidate("done", needs_decoding=True)]
    kinds = [type(policy.choose(crowd)) for _ in range(8)]
    assert kinds == [Denoise, Denoise, Denoise, Decode] * 2


def test_decodes_run_back_to_back_when_there_is_nothing_to_denoise() -> None:
    policy = Policy(max_rows=always(8), decode_interval_ticks=3)
    crowd = [candidate("a", needs_decoding=True), candidate("b", needs_decoding=True)]
    works = [policy.choose(crowd) for _ in range(3)]
    assert works == [Decode(id="a"), Decode(id="b"), Decode(id="a")]


def test_decodes_do_not_use_up_the_floor_of_denoising() -> None:
    policy = Policy(max_rows=always(2))
    crowd = [
        candidate("low"),
        candidate("high", priority=5),
        candidate("done", needs_decoding=True, priority=5),
    ]
    works = [policy.choose(crowd) for _ in range(8 * FLOOR_INTERVAL)]
    assert works.count(Denoise(ids=("low",))) == 4


def test_admission_is_by_priority_with_a_floor_by_arrival() -> None:
    policy = Policy(max_rows=always(8))
    waiting = [candidate("old"), candidate("urgent", priority=9)]
    admitted = [policy.admit(waiting) for _ in range(FLOOR_INTERVAL)]
    assert admitted == ["urgent"] * (FLOOR_INTERVAL - 1) + ["old"]


def test_equal_priorities_are_admitted_by_deadline() -> None:
    waiting = [
        candidate("old"),
        candidate("later", urgent_deadline=2.0),
        candidate("sooner", urgent_deadline=1.0),
    ]
    assert Policy(max_rows=always(8)).admit(waiting) == "sooner"


def test_equal_candidates_are_admitted_in_order_of_arrival() -> None:
    assert Policy(max_rows=always(8)).admit([candidate("a"), candidate("b")]) == "a"


def test_reproducible_calls_are_padded_to_one_size() -> None:
    assert [padded_rows(rows, max_rows=8, is_reproducible=True) for rows in (1, 5, 8)] == [8] * 3
    assert [padded_rows(rows, max_rows=8, is_reproducible=False) for rows in (1, 5, 8)] == [1, 5, 8]


@given(st.integers(1, 64), st.integers(1, 16))
def test_chunks_cover_all_rows_in_order(num_rows: int, max_rows: int) -> None:
    parts = chunks(num_rows, max_rows=max_rows)
    assert [row for part in parts for row in part] == list(range(num_rows))
    assert all(len(part) <= max_rows for part in parts)


def test_the_row_limit_is_lowered_for_one_group_and_restored() -> None:
    limit = RowLimit(max_rows=always(8))
    limit.lower(SQUARE, failed_rows=8)
    assert (limit.of(SQUARE), limit.of(LARGE)) == (4, 8)
    limit.lower(SQUARE, failed_rows=4)
    assert limit.of(SQUARE) == 2
    for _ in range(LOWERED_CALLS):
        limit.count_call(SQUARE)
    assert limit.of(SQUARE) == 8


def test_the_row_limit_never_falls_below_one_or_rises_after_a_failure() -> None:
    limit = RowLimit(max_rows=always(8))
    for failed_rows in (1, 8, 2):
        limit.lower(SQUARE, failed_rows=failed_rows)
        assert limit.of(SQUARE) == 1
