"""Turns, counted in denoiser calls: by device time, and by urgent deadlines."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from latentwire_server.engine.policy import estimate
from tests.support.engine.requests import request
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from tests.support.fakes import Call

SLOW_S = 0.1


async def test_slow_calls_of_one_size_do_not_hold_up_another_size(start) -> None:
    driver = await start(max_rows=2)

    def slowly(prediction, call: Call):
        time.sleep(SLOW_S)
        return prediction

    driver.model.faults.append((lambda call: "slow" in call.prompts, slowly))
    await driver.run_held(
        request("slow", num_inference_steps=12),
        request("quick", width=128, num_inference_steps=24),
    )
    prompts = [call.prompts[0] for call in driver.model.calls]
    num_slow = prompts[: len(prompts) - prompts[::-1].index("quick")].count("slow")
    # Taking turns call by call it would be all twelve, and the quick one would wait for them.
    assert num_slow <= 8


# A stalled call is charged to whoever made it, so that the urgent one may even have all turns.
@pytest.mark.parametrize(("margin", "least", "most"), [(1e9, 0.64, 1.0), (0.0, 0.28, 0.4)])
async def test_an_endangered_deadline_goes_first_and_a_safe_one_takes_turns(
    start, monkeypatch: pytest.MonkeyPatch, margin: float, least: float, most: float
) -> None:
    monkeypatch.setattr(estimate, "DEADLINE_MARGIN", margin)
    driver = await start(max_rows=1)
    # Until a speed is known every deadline is in danger.
    await driver.run(request("before"))
    driver.model.calls.clear()
    await driver.run_held(
        request("a", num_inference_steps=60),
        request("b", num_inference_steps=60),
        request("c", num_inference_steps=30, deadline=time.monotonic() + 60),
    )
    prompts = [call.prompts[0] for call in driver.model.calls]
    with_c = prompts[prompts.index("c") : len(prompts) - prompts[::-1].index("c")]
    assert least <= with_c.count("c") / len(with_c) <= most


async def test_a_deadline_that_can_no_longer_be_met_is_not_urgent(
    start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "DEADLINE_MARGIN", 1e9)
    driver = await start(max_rows=1)
    driver.model.call_s = 0.01
    await driver.run(request("before"))
    driver.model.hold()
    other = asyncio.create_task(driver.run(request("other", num_inference_steps=40)))
    await eventually(lambda: driver.model.calls[-1].prompts == ("other",))
    deadline = time.monotonic() + 0.5
    late = driver.run(request("late", num_inference_steps=30, deadline=deadline))
    running = asyncio.create_task(late)
    await asyncio.sleep(0.35)  # Now half of its calls fit.
    driver.model.let_go()
    assert not (await running).is_complete
    assert (await other).is_complete
    prompts = [call.prompts[0] for call in driver.model.calls]
    num_late = prompts.count("late")
    num_other = prompts[prompts.index("other") :].index("late") if num_late else 0
    last = len(prompts) - prompts[::-1].index("late") if num_late else 0
    assert num_late <= prompts[:last].count("other") - num_other + 2
