"""The guarantees of the channel, one by one."""

from __future__ import annotations

import asyncio
import threading

import pytest

from latentwire_server.engine.errors import (
    Cancelled,
    DeviceFailed,
    GenerationError,
    NonFiniteOutput,
    SlowReader,
)
from latentwire_server.engine.events import (
    Accepted,
    Completed,
    Event,
    Image,
    PhaseName,
    Preview,
    Progress,
    Queued,
    Timings,
)
from latentwire_server.engine.handover.channel import Channel
from tests.support.engine.requests import request
from tests.support.eventually import eventually
from tests.support.time_limits import scaled

ACCEPTED = Accepted(request=request())
COMPLETED = Completed(
    image_count=1,
    timings=Timings(queued_s=0, encoding_s=0, denoising_s=0, decoding_s=0, total_s=0),
    peak_memory_bytes=0,
    model_revision="",
)


def progress(step: int) -> Progress:
    return Progress(
        phase=PhaseName.DENOISING,
        step=step,
        step_count=1000,
        fraction=step / 1000,
        estimated_remaining_s=None,
    )


def preview(index: int, step: int) -> Preview:
    return Preview(image_index=index, step=step, media_type="", width=1, height=1, data=b"")


def image(index: int) -> Image:
    return Image(index=index, seed=0, media_type="", width=1, height=1, data=b"")


def queued(ahead_count: int) -> Queued:
    return Queued(ahead_count=ahead_count, estimated_wait_s=None)


class Reader:
    """A channel, and the reasons that it gave for closing."""

    def __init__(self, *, send_timeout_s: float = 60.0) -> None:
        self.reasons: list[GenerationError] = []
        self.channel = Channel(
            asyncio.get_running_loop(),
            send_timeout_s=send_timeout_s,
            on_close=self.reasons.append,
        )

    async def read_all(self) -> list[Event]:
        events = []
        while True:
            try:
                events.append(await self.channel.receive())
            except StopAsyncIteration:
                return events


async def test_lossless_events_all_arrive_in_order() -> None:
    reader = Reader()
    published = [ACCEPTED, image(0), image(1), image(2)]
    for event in published:
        reader.channel.publish(event)
    reader.channel.finish(COMPLETED)
    assert await reader.read_all() == [*published, COMPLETED]


async def test_an_unread_progress_is_replaced_by_the_newest() -> None:
    reader = Reader()
    reader.channel.publish(ACCEPTED)
    for step in range(1, 1001):
        reader.channel.publish(progress(step))
    reader.channel.publish(image(0))
    reader.channel.finish(COMPLETED)
    assert await reader.read_all() == [ACCEPTED, progress(1000), image(0), COMPLETED]


async def test_each_image_has_a_preview_slot_of_its_own() -> None:
    reader = Reader()
    for step in (1, 2, 3):
        for index in (0, 1):
            reader.channel.publish(preview(index, step))
    reader.channel.finish(COMPLETED)
    assert await reader.read_all() == [preview(0, 3), preview(1, 3), COMPLETED]


async def test_an_unread_queue_position_is_replaced_by_the_newest() -> None:
    reader = Reader()
    for ahead_count in (3, 2, 1):
        reader.channel.publish(queued(ahead_count))
    reader.channel.publish(progress(1))
    reader.channel.finish(COMPLETED)
    assert await reader.read_all() == [queued(1), progress(1), COMPLETED]


async def test_an_event_that_is_read_in_time_is_not_replaced() -> None:
    reader = Reader()
    for step in range(1, 20):
        reader.channel.publish(progress(step))
        assert await reader.channel.receive() == progress(step)


async def test_an_error_follows_earlier_images_and_replaces_progress() -> None:
    reader = Reader()
    reader.channel.publish(ACCEPTED)
    reader.channel.publish(progress(1))
    reader.channel.publish(image(0))
    reader.channel.fail(NonFiniteOutput(step=3))
    reader.channel.publish(image(1))
    reader.channel.finish(COMPLETED)
    assert await reader.channel.receive() == ACCEPTED
    assert await reader.channel.receive() == image(0)
    with pytest.raises(NonFiniteOutput):
        await reader.channel.receive()
    with pytest.raises(StopAsyncIteration):
        await reader.channel.receive()


async def test_an_error_after_success_changes_nothing() -> None:
    reader = Reader()
    reader.channel.finish(COMPLETED)
    reader.channel.fail(DeviceFailed())
    assert await reader.read_all() == [COMPLETED]


async def test_an_error_wakes_a_waiting_reader() -> None:
    reader = Reader()
    receiving = asyncio.create_task(reader.channel.receive())
    await asyncio.sleep(0)
    threading.Thread(target=reader.channel.fail, args=(DeviceFailed(),)).start()
    with pytest.raises(DeviceFailed):
        await receiving


async def test_closing_cancels_once_and_drops_waiting_events() -> None:
    reader = Reader()
    reader.channel.publish(image(0))
    for _ in range(3):
        reader.channel.close()
    reader.channel.publish(image(1))
    reader.channel.fail(DeviceFailed())
    assert [type(reason) for reason in reader.reasons] == [Cancelled]
    assert not reader.channel._waiting
    assert await reader.read_all() == []


async def test_closing_after_the_end_cancels_nothing() -> None:
    reader = Reader()
    reader.channel.finish(COMPLETED)
    reader.channel.close()
    assert reader.reasons == []


async def test_closing_wakes_a_waiting_reader() -> None:
    reader = Reader()
    receiving = asyncio.create_task(reader.channel.receive())
    await asyncio.sleep(0)
    reader.channel.close()
    with pytest.raises(StopAsyncIteration):
        await receiving


async def test_a_reader_that_never_reads_ends_as_a_slow_reader() -> None:
    reader = Reader(send_timeout_s=0.02)
    reader.channel.publish(image(0))
    await eventually(lambda: reader.reasons)
    assert [type(reason) for reason in reader.reasons] == [SlowReader]
    with pytest.raises(SlowReader):
        await reader.channel.receive()
    assert not reader.channel._waiting


async def test_a_reader_that_waits_for_events_is_never_slow() -> None:
    reader = Reader(send_timeout_s=0.02)
    reader.channel.publish(image(0))
    await reader.channel.receive()
    receiving = asyncio.create_task(reader.channel.receive())
    done, _ = await asyncio.wait([receiving], timeout=0.1)
    assert not done
    reader.channel.publish(image(1))
    assert await receiving == image(1)


async def test_a_reader_that_reads_slowly_is_not_ended() -> None:
    reader = Reader(send_timeout_s=2.0)
    for index in range(4):
        reader.channel.publish(image(index))
    for index in range(4):
        await asyncio.sleep(0.6)  # The pause is what is tested.
        assert await reader.channel.receive() == image(index)


async def test_publishing_keeps_at_most_one_call_pending_on_the_event_loop() -> None:
    class CountingLoop:
        num_calls = 0

        def call_soon_threadsafe(self, callback: object) -> None:
            del callback
            self.num_calls += 1

    loop = CountingLoop()
    channel = Channel(loop, send_timeout_s=60.0, on_close=lambda _: None)  # type: ignore[arg-type]
    for step in range(1000):
        channel.publish(progress(step))
    assert loop.num_calls == 1


async def test_publishing_never_waits_for_a_reader_that_does_not_read() -> None:
    reader = Reader()

    def publish() -> None:
        for step in range(10_000):
            reader.channel.publish(progress(step))

    thread = threading.Thread(target=publish)
    thread.start()
    # The event loop is blocked here, so that nothing is read.
    thread.join(timeout=scaled(20))
    assert not thread.is_alive()
    assert len(reader.channel._waiting) == 1


async def test_events_of_a_busy_publisher_thread_all_arrive_in_order() -> None:
    reader = Reader()

    def publish() -> None:
        for index in range(500):
            reader.channel.publish(progress(index))
            reader.channel.publish(image(index))
        reader.channel.finish(COMPLETED)

    thread = threading.Thread(target=publish)
    thread.start()
    events = await reader.read_all()
    thread.join()
    assert [event.index for event in events if isinstance(event, Image)] == list(range(500))
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps == sorted(steps)
    assert events[-1] == COMPLETED


def test_publishing_after_the_event_loop_is_closed_does_nothing() -> None:
    loop = asyncio.new_event_loop()
    channel = Channel(loop, send_timeout_s=60.0, on_close=lambda _: None)
    loop.close()
    channel.publish(image(0))
    channel.fail(DeviceFailed())
