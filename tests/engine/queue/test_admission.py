"""Admission, waiting, and the events that report queue positions."""

from __future__ import annotations

import asyncio
import time

import pytest

from latentwire_server.engine.errors import (
    DeadlinePassed,
    DeadlineTooShort,
    Draining,
    QueueFull,
)
from latentwire_server.engine.events import Queued
from latentwire_server.engine.snapshots import GenerationState
from tests.support.engine.driving import read
from tests.support.engine.requests import request
from tests.support.eventually import eventually
from tests.support.fakes import FakeModel
from tests.support.time_limits import scaled


async def test_a_generation_that_starts_at_once_gets_no_queued_event(start) -> None:
    driver = await start()
    assert (await driver.run(request())).of_kind(Queued) == []


async def test_queue_positions_are_sent_as_they_change(start) -> None:
    driver = await start(max_running=1)
    driver.model.hold()
    streams = [driver.submit(request())]
    await eventually(lambda: driver.model.calls)
    streams += [driver.submit(request()) for _ in range(3)]
    last = streams[3]
    await anext(last)
    seen = [(await anext(last)).ahead_count]
    await streams[2].aclose()
    seen.append((await anext(last)).ahead_count)
    await streams[1].aclose()
    seen.append((await anext(last)).ahead_count)
    assert seen == [2, 1, 0]
    for stream in streams:
        await stream.aclose()


async def test_queue_positions_are_sent_again_while_the_device_is_inside_a_call(start) -> None:
    driver = await start(max_running=1, queued_event_interval_s=0.02)
    driver.model.hold()
    running, waiting = request(), request()
    streams = [driver.submit(running)]
    await eventually(lambda: driver.model.calls)
    streams.append(driver.submit(waiting))
    await anext(streams[1])
    received = [await anext(streams[1]) for _ in range(5)]
    assert received == [Queued(ahead_count=0, estimated_wait_s=None)] * 5
    assert len(driver.model.calls) == 1
    for stream in streams:
        await stream.aclose()


async def test_the_wait_is_estimated_from_measured_speed(start) -> None:
    driver = await start(FakeModel(call_s=0.005), max_running=1)
    await driver.run(request(num_inference_steps=10))
    driver.model.hold()
    streams = [driver.submit(request(num_inference_steps=100))]
    await eventually(lambda: len(driver.model.calls) > 10)
    streams.append(driver.submit(request()))
    await anext(streams[1])
    queued = await anext(streams[1])
    assert queued.estimated_wait_s >= 0.4
    for stream in streams:
        await stream.aclose()


async def test_higher_priority_leaves_the_queue_first(start) -> None:
    driver = await start(max_running=1)
    driver.model.hold()
    tasks = [asyncio.create_task(driver.run(request("first", num_inference_steps=1)))]
    await eventually(lambda: driver.model.calls)
    for prompt, priority in (("low", -1), ("normal", 0), ("high", 1)):
        wanted = request(prompt, priority=priority, num_inference_steps=1)
        tasks.append(asyncio.create_task(driver.run(wanted)))
    await asyncio.sleep(0)
    driver.model.let_go()
    await asyncio.gather(*tasks)
    order = [call.prompts[0] for call in driver.model.calls]
    assert order[:3] == ["first", "high", "normal"]


async def test_a_full_queue_refuses_with_a_retry_delay(start) -> None:
    driver = await start(FakeModel(call_s=0.001), max_running=2, max_queued=3)
    await driver.run(request(num_inference_steps=10))
    driver.model.hold()
    # Two get a place at once, though the device thread has not taken them in yet.
    streams = [driver.submit(request(num_inference_steps=100)) for _ in range(5)]
    with pytest.raises(QueueFull) as caught:
        driver.submit(request())
    assert caught.value.max_queued == 3
    assert caught.value.retry_after_s == int(caught.value.retry_after_s)
    assert 1 <= caught.value.retry_after_s <= 120
    await streams.pop().aclose()
    streams.append(driver.submit(request()))
    for stream in streams:
        await stream.aclose()


async def test_a_deadline_in_the_past_is_refused(start) -> None:
    driver = await start()
    with pytest.raises(DeadlinePassed):
        driver.submit(request(deadline=time.monotonic() - 1))
    assert driver.engine.list(owner="") == ()


async def test_a_deadline_that_passes_in_the_queue_costs_no_calls_and_is_answered_at_once(
    start,
) -> None:
    driver = await start(max_running=1)
    driver.model.hold()
    stream = driver.submit(request("running"))
    await eventually(lambda: driver.model.calls)
    late_s = []
    # The device is inside a call all the time. The quickest of a few: machines have hiccups.
    for _ in range(4):
        deadline = time.monotonic() + 0.1
        result = await driver.run(request("late", deadline=deadline))
        late_s.append(time.monotonic() - deadline)
        assert isinstance(result.error, DeadlinePassed)
    assert min(late_s) < 0.1
    assert driver.model.calls_with("late") == []
    await stream.aclose()


async def test_a_deadline_that_cannot_be_met_is_refused_once_the_speed_is_known(start) -> None:
    driver = await start(FakeModel(call_s=0.02))
    hopeless = {"num_inference_steps": 1000, "deadline": time.monotonic() + 10.0}
    unmeasured = driver.submit(request(**hopeless))
    await unmeasured.aclose()
    await driver.run(request(num_inference_steps=5))
    with pytest.raises(DeadlineTooShort) as caught:
        driver.submit(request(**hopeless))
    assert caught.value.needed_s >= 15.0
    assert caught.value.remaining_s <= 10.0
    roomy = request(num_inference_steps=5, deadline=time.monotonic() + 60)
    assert (await driver.run(roomy)).is_complete


async def test_queued_work_counts_when_a_deadline_is_checked(start) -> None:
    driver = await start(FakeModel(call_s=0.01), max_running=1)
    await driver.run(request(num_inference_steps=5))
    stream = driver.submit(request(num_inference_steps=1000))
    await eventually(lambda: driver.engine.status().running_count == 1)
    with pytest.raises(DeadlineTooShort):
        driver.submit(request(num_inference_steps=5, deadline=time.monotonic() + 3.0))
    await stream.aclose()


async def test_draining_refuses_new_ends_queued_and_finishes_running_generations(start) -> None:
    driver = await start(max_running=1)
    driver.model.hold()
    running, waiting = request("running"), request("waiting")
    tasks = [asyncio.create_task(driver.run(running))]
    await eventually(lambda: driver.model.calls)
    tasks.append(asyncio.create_task(driver.run(waiting)))
    await asyncio.sleep(0)
    draining = asyncio.create_task(driver.engine.drain(grace_s=30.0))
    waited = await tasks[1]
    assert isinstance(waited.error, Draining)
    with pytest.raises(Draining):
        driver.submit(request())
    assert driver.engine.status().is_draining
    assert not draining.done()
    driver.model.let_go()
    assert (await tasks[0]).is_complete
    await draining
    assert driver.model.calls_with("waiting") == []


async def test_draining_ends_generations_that_run_beyond_the_grace(start) -> None:
    driver = await start()
    driver.model.hold()
    running = request("running")
    stream = driver.submit(running)
    await eventually(lambda: driver.model.calls)
    await driver.engine.drain(grace_s=0.05)
    assert isinstance((await read(stream, running)).error, Draining)
    assert driver.state(running) is GenerationState.FAILED


async def test_draining_an_idle_engine_ends_at_once(start) -> None:
    driver = await start()
    await asyncio.wait_for(driver.engine.drain(grace_s=60.0), timeout=scaled(5.0))


async def test_closing_ends_active_generations(start) -> None:
    driver = await start(FakeModel(call_s=0.005), max_running=1)
    wanted = [request(num_inference_steps=1000), request()]
    streams = [driver.submit(one) for one in wanted]
    await eventually(lambda: driver.model.calls)
    await driver.engine.aclose()
    for stream, one in zip(streams, wanted, strict=True):
        assert isinstance((await read(stream, one)).error, Draining)
