"""The events of a generation, and their order."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from latentwire_server.engine.events import (
    Accepted,
    Completed,
    Image,
    PhaseName,
    Preview,
    Progress,
)
from latentwire_server.engine.request import EventOptions, PreviewMethod
from tests.support.engine.detectors import check_late_reader
from tests.support.engine.driving import pixels_of_file, read
from tests.support.engine.requests import request
from tests.support.eventually import eventually
from tests.support.fakes import FakeModel, colour_of


async def test_events_come_in_order_and_the_fraction_never_falls(start) -> None:
    driver = await start()
    driver.model.hold()
    stream = driver.submit(request(num_inference_steps=3, num_images=2, scheduler="heun"))
    events = []
    async for event in stream:
        events.append(event)
        driver.model.release(2)
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], Completed)
    progress = [event for event in events if isinstance(event, Progress)]
    fractions = [event.fraction for event in progress]
    assert fractions == sorted(fractions)
    assert {event.step_count for event in progress} == {3}
    phases = [event.phase for event in progress]
    assert phases == sorted(phases, key=list(PhaseName).index)
    assert [event.index for event in events if isinstance(event, Image)] == [0, 1]


@pytest.mark.parametrize("scheduler", ["euler", "heun"])
async def test_progress_counts_steps_not_evaluations(start, scheduler: str) -> None:
    driver = await start()
    driver.model.hold()
    steps = []
    async for event in driver.submit(request(num_inference_steps=5, scheduler=scheduler)):
        if isinstance(event, Progress):
            steps.append(event.step)
        driver.model.release(1 if scheduler == "euler" else 2)
    # Unread progress is replaced by newer, so a step may go unseen; the last one never does.
    assert steps == sorted(steps)
    assert set(steps) <= set(range(6))
    assert steps[-1] == 5


async def test_progress_comes_at_the_interval_and_at_the_end(start) -> None:
    driver = await start()
    driver.model.hold()
    steps = []
    wanted = request(num_inference_steps=7, events=EventOptions(progress_interval_steps=3))
    stream = driver.submit(wanted)
    reading = asyncio.create_task(read(stream, wanted))
    for number in range(1, 8):
        await eventually(lambda number=number: len(driver.model.calls) >= number)
        driver.model.release()
    result = await reading
    steps = {event.step for event in result.of_kind(Progress)}
    assert steps <= {0, 3, 6, 7}
    assert 7 in steps


@pytest.mark.parametrize("method", PreviewMethod)
async def test_a_preview_shows_the_predicted_image_of_its_step(
    start, method: PreviewMethod
) -> None:
    driver = await start()
    driver.model.hold()
    previews = []
    wanted = request(
        "preview me",
        width=128,
        num_images=2,
        num_inference_steps=4,
        events=EventOptions(preview_interval_steps=2, preview_method=method, preview_max_side=96),
    )
    async for event in driver.submit(wanted):
        if isinstance(event, Preview):
            previews.append(event)
        driver.model.release()
    assert {event.image_index for event in previews} == {0, 1}
    assert {event.step for event in previews} <= {2, 4}
    colour = colour_of("preview me")[:3] * 255
    for event in previews:
        assert (event.width, event.height) == (96, 48)
        # The fake's prediction is the colour itself, at any step: not the noisy latents.
        assert np.abs(pixels_of_file(event.data) - colour).max() <= 4


async def test_no_previews_unless_requested(start) -> None:
    driver = await start()
    result = await driver.run(request())
    assert result.of_kind(Preview) == []


async def test_a_late_reader_gets_every_lossless_event_and_the_newest_progress(start) -> None:
    await check_late_reader(start)


async def test_completed_reports_its_timings(start) -> None:
    driver = await start(FakeModel(call_s=0.01))
    result = await driver.run(request(num_images=3))
    completed = result.events[-1]
    timings = completed.timings
    assert completed.image_count == 3
    assert completed.model_revision == "sha256:fake"
    assert completed.peak_memory_bytes > 10_000_000
    parts = timings.queued_s + timings.encoding_s + timings.denoising_s + timings.decoding_s
    assert parts == pytest.approx(timings.total_s)
    assert timings.denoising_s >= 0.04
    assert min(timings.queued_s, timings.encoding_s, timings.decoding_s) >= 0


async def test_remaining_time_is_estimated_once_a_speed_is_known(start) -> None:
    driver = await start(FakeModel(call_s=0.005))
    await driver.run(request(num_inference_steps=10))
    result = await driver.run(request(num_inference_steps=10))
    first = result.of_kind(Progress)[0]
    assert first.estimated_remaining_s is not None
    assert first.estimated_remaining_s >= 0.04
