"""Which models are unloaded to make room for another, as plain arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire_server.registry.memory_plan import Resident, TooLargeError, models_to_unload


def resident(id_: str, size_bytes: int, last_used: float, *, is_in_use: bool = False) -> Resident:
    return Resident(id=id_, size_bytes=size_bytes, last_used=last_used, is_in_use=is_in_use)


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [(40, ()), (41, ("b",)), (60, ("b",)), (61, ("b", "a")), (80, ("b", "a")), (81, None)],
)
def test_the_least_recently_used_models_are_unloaded_and_no_more_than_needed(
    size_bytes: int, expected: object
):
    residents = [
        resident("a", 20, 2.0),
        resident("b", 20, 1.0),
        resident("c", 20, 0.0, is_in_use=True),
    ]
    assert models_to_unload(size_bytes, budget_bytes=100, residents=residents) == expected


def test_a_small_model_is_spared_if_a_large_one_suffices():
    residents = [resident("small", 10, 1.0), resident("large", 90, 2.0)]
    assert models_to_unload(90, budget_bytes=100, residents=residents) == ("large",)


def test_a_model_larger_than_the_budget_is_an_error():
    with pytest.raises(TooLargeError):
        models_to_unload(101, budget_bytes=100, residents=[resident("a", 100, 0.0)])


RESIDENTS = st.lists(st.tuples(st.integers(0, 50), st.floats(0, 9), st.booleans()), max_size=6).map(
    lambda models: [
        resident(str(index), size, last_used, is_in_use=is_in_use)
        for index, (size, last_used, is_in_use) in enumerate(models)
    ]
)


@given(size_bytes=st.integers(0, 120), residents=RESIDENTS)
def test_the_plan_makes_enough_room_and_unloads_no_model_needlessly(
    size_bytes: int, residents: list[Resident]
):
    sizes = {one.id: one.size_bytes for one in residents}
    in_use = {one.id for one in residents if one.is_in_use}
    try:
        leaving = models_to_unload(size_bytes, budget_bytes=100, residents=residents)
    except TooLargeError:
        assert size_bytes > 100
        return
    if leaving is None:
        assert size_bytes + sum(sizes[id_] for id_ in in_use) > 100
        return
    assert in_use.isdisjoint(leaving)
    left = sum(sizes.values()) - sum(sizes[id_] for id_ in leaving)
    if leaving:
        assert left + size_bytes <= 100
    for id_ in leaving:
        assert left + size_bytes + sizes[id_] > 100
