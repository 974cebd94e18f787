"""Cancelled work stops, in any state and however it is cancelled, counted in denoiser calls."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING

import pytest

from latentwire_server.engine.errors import Cancelled, DeadlinePassed
from latentwire_server.engine.events import Accepted, Completed, Image
from latentwire_server.engine.snapshots import GenerationState
from tests.support.engine.detectors import check_cancelled_is_in_no_later_call
from tests.support.engine.driving import Driver, read
from tests.support.engine.requests import request
from tests.support.eventually import eventually
from tests.support.fake_faults import Gate, on_call
from tests.support.fakes import FakeModel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latentwire_server.engine.handover.stream import GenerationStream
    from latentwire_server.engine.request import GenerationRequest

DEADLINE_S = 1.5


class Case:
    """A victim in a certain state, beside another generation that must not be affected."""

    def __init__(self, driver: Driver, victim: GenerationRequest) -> None:
        self.driver = driver
        self.victim = victim
        self.other = request("other", num_inference_steps=6)
        self.gate = Gate()
        self.stream: GenerationStream | None = None
        self.reading: asyncio.Task[object] | None = None
        self.other_reading: asyncio.Task[object] | None = None

    def submit_other(self) -> None:
        stream = self.driver.submit(self.other)
        self.other_reading = asyncio.create_task(read(stream, self.other))

    def submit_victim(self) -> None:
        self.stream = self.driver.submit(self.victim)
        self.reading = asyncio.create_task(self._read_and_close())

    async def _read_and_close(self) -> object:
        async with self.stream as stream:
            return await read(stream, self.victim)

    @property
    def num_calls(self) -> int:
        return len(self.driver.model.calls_with("victim"))


async def queued(case: Case) -> None:
    case.driver.model.hold()
    case.submit_other()
    await eventually(lambda: case.driver.model.calls)
    case.submit_victim()
    await asyncio.sleep(0)


async def encoding(case: Case) -> None:
    case.driver.model.encode_faults.append((lambda call: "victim" in call.prompts, case.gate))
    case.submit_victim()
    await eventually(lambda: case.gate.is_reached)
    case.submit_other()


async def inside_the_first_call(case: Case) -> None:
    case.driver.model.hold()
    case.submit_victim()
    await eventually(lambda: case.num_calls == 1)
    case.submit_other()


async def inside_a_later_call(case: Case) -> None:
    case.driver.model.hold()
    case.submit_victim()
    case.driver.model.release(2)
    await eventually(lambda: case.num_calls == 3)
    case.submit_other()


async def decoding(case: Case) -> None:
    case.driver.model.decode_faults.append((on_call(1), case.gate))
    case.submit_victim()
    await eventually(lambda: case.gate.is_reached)
    case.submit_other()


async def by_rpc(case: Case) -> None:
    case.driver.engine.cancel(case.victim.generation_id, owner="")


async def by_closing(case: Case) -> None:
    await case.stream.aclose()


async def by_cancelling_the_reader(case: Case) -> None:
    case.reading.cancel()
    await asyncio.wait([case.reading])


async def by_deadline(case: Case) -> None:
    await eventually(lambda: case.driver.state(case.victim) is GenerationState.CANCELLED)


STATES = [queued, encoding, inside_the_first_call, inside_a_later_call, decoding]
WAYS = [by_rpc, by_closing, by_cancelling_the_reader, by_deadline]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bring_into_state", STATES)
async def test_a_generation_cancelled_in_any_state_is_absent_from_the_next_call(
    start, bring_into_state: Callable[[Case], Awaitable[None]], way
) -> None:
    driver = await start(max_running=1)
    deadline = time.monotonic() + DEADLINE_S if way is by_deadline else None
    case = Case(driver, request("victim", num_inference_steps=6, deadline=deadline))
    await bring_into_state(case)
    assert driver.state(case.victim) is not GenerationState.SUCCEEDED
    num_calls = case.num_calls
    await way(case)
    assert driver.state(case.victim) is GenerationState.CANCELLED
    driver.model.let_go()
    case.gate.open()
    # The place is free: the generation that waited for it runs.
    assert (await case.other_reading).is_complete
    assert case.num_calls == num_calls
    assert driver.state(case.victim) is GenerationState.CANCELLED
    if not case.reading.cancelled():
        result = await case.reading
        assert not result.of_kind(Completed, Image)
        expected = DeadlinePassed if way is by_deadline else Cancelled
        assert result.error is None if way is by_closing else isinstance(result.error, expected)


@pytest.mark.parametrize("way", WAYS)
async def test_a_cancel_between_two_images_keeps_the_first_and_decodes_no_more(start, way) -> None:
    driver = await start(max_running=1)
    deadline = time.monotonic() + DEADLINE_S if way is by_deadline else None
    case = Case(driver, request("victim", num_images=3, deadline=deadline))
    driver.model.decode_faults.append((on_call(2), case.gate))
    case.submit_victim()
    await eventually(lambda: case.gate.is_reached)
    case.submit_other()
    await way(case)
    case.gate.open()
    assert (await case.other_reading).is_complete
    assert driver.model.num_decodes == 3  # Two of the victim's, one of the other's.
    assert driver.state(case.victim) is GenerationState.CANCELLED
    if not case.reading.cancelled():
        result = await case.reading
        assert len(result.images) <= 1
        assert not result.of_kind(Completed)


async def test_a_cancelled_generations_rows_go_to_the_next_in_the_same_tick(start) -> None:
    driver = await start(max_running=1)
    driver.model.hold()
    victim, heir = request("victim"), request("heir")
    streams = [driver.submit(victim)]
    await eventually(lambda: driver.model.calls)
    streams.append(driver.submit(heir))
    driver.engine.cancel(victim.generation_id, owner="")
    driver.model.let_go()
    await read(streams[1], heir)
    await streams[0].aclose()
    assert [call.prompts[0] for call in driver.model.calls] == ["victim"] + ["heir"] * 4


async def test_cancelling_an_ended_generation_changes_nothing(start) -> None:
    driver = await start()
    wanted = request()
    await driver.run(wanted)
    snapshot = driver.engine.cancel(wanted.generation_id, owner="")
    assert snapshot.state is GenerationState.SUCCEEDED


async def test_a_cancel_does_not_affect_the_rest_of_the_batch(start) -> None:
    await check_cancelled_is_in_no_later_call(start)


async def test_a_cancelled_generation_of_several_calls_makes_no_more_of_them(start) -> None:
    driver = await start(max_rows=2)
    driver.model.hold()
    wanted = request("victim", num_images=8)
    stream = driver.submit(wanted)
    await eventually(lambda: driver.model.calls)
    await stream.aclose()
    driver.model.let_go()
    await driver.run(request("other"))
    assert len(driver.model.calls_with("victim")) == 1


async def test_a_thousand_simultaneous_cancels_take_one_tick(start) -> None:
    driver = await start(max_queued=2000)
    driver.model.hold()
    streams = [driver.submit(request("victim")) for _ in range(1000)]
    await eventually(lambda: driver.model.calls)
    for stream in streams:
        await stream.aclose()
    driver.model.let_go()
    assert (await driver.run(request("other"))).is_complete
    assert len(driver.model.calls_with("victim")) == 1


async def test_a_cancel_racing_completion_has_exactly_one_outcome(start, caplog) -> None:
    caplog.set_level(logging.WARNING)
    driver = await start()
    started = time.monotonic()
    await driver.run_all(*[request(num_inference_steps=3) for _ in range(10)])
    uncancelled_s = time.monotonic() - started
    chance = random.Random(20)

    async def race() -> tuple[bool, bool]:
        wanted = request(num_inference_steps=chance.randint(1, 3))
        stream = driver.submit(wanted)
        reading = asyncio.create_task(read(stream, wanted))
        # The race is against another thread, so only the time can be varied.
        await asyncio.sleep(chance.random() * 2 * uncancelled_s)
        driver.engine.cancel(wanted.generation_id, owner="")
        result = await reading
        completions = result.of_kind(Completed)
        is_cancelled = isinstance(result.error, Cancelled)
        assert len(completions) + is_cancelled == 1
        assert isinstance(result.events[0], Accepted)
        state = driver.state(wanted)
        expected = GenerationState.CANCELLED if is_cancelled else GenerationState.SUCCEEDED
        assert state is expected
        return is_cancelled, bool(completions)

    ends = []
    for _ in range(20):
        ends += await asyncio.gather(*[race() for _ in range(10)])
    assert len(ends) == 200
    assert {is_cancelled for is_cancelled, _ in ends} == {True, False}
    assert caplog.records == []


async def test_a_slow_reader_is_ended_and_its_generation_cancelled(start) -> None:
    driver = await start(FakeModel(call_s=0.01), send_timeout_s=0.1)
    stalled = request("stalled", num_inference_steps=1000)
    stream = driver.submit(stalled)
    assert (await driver.run(request("other"))).is_complete
    await eventually(lambda: driver.state(stalled) is GenerationState.CANCELLED)
    result = await read(stream, stalled)
    assert type(result.error).__name__ == "SlowReader"
    assert len(driver.model.calls_with("stalled")) < 1000
