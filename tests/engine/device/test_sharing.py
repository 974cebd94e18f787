"""Requests for one picture: drawn once, counted in rows; each keeps its own life and file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from latentwire_server.engine.errors import Cancelled
from latentwire_server.engine.events import Progress
from latentwire_server.engine.request import ImageFormat, OutputOptions
from tests.support.engine.driving import assert_drawn_right, read
from tests.support.engine.requests import request
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from latentwire_server.engine.request import GenerationRequest
    from tests.support.engine.driving import Driver, Result


async def run_late(driver: Driver, *requests: GenerationRequest, after_calls: int) -> list[Result]:
    """Runs the first, and the others from the call on that comes after so many."""
    driver.model.hold()
    streams = [driver.engine.submit(requests[0])]
    for number in range(after_calls):
        await eventually(lambda number=number: len(driver.model.calls) == number + 1)
        driver.model.release()
    await eventually(lambda: len(driver.model.calls) == after_calls + 1)
    streams += [driver.engine.submit(one) for one in requests[1:]]
    reading = [
        asyncio.create_task(read(stream, one))
        for stream, one in zip(streams, requests, strict=True)
    ]
    driver.model.let_go()
    return [await one for one in reading]


@pytest.mark.parametrize("scheduler", ["euler", "euler-a", "heun"])
@pytest.mark.parametrize("after_calls", [0, 3])
async def test_who_asks_for_a_picture_that_is_being_drawn_goes_on_from_there(
    start, scheduler: str, after_calls: int
) -> None:
    driver = await start(max_rows=8)
    first, twin = (request(scheduler=scheduler, num_inference_steps=6) for _ in range(2))
    results = await run_late(driver, first, twin, after_calls=after_calls)
    num_evaluations = 11 if scheduler == "heun" else 6
    assert [call.num_rows for call in driver.model.calls] == [1] * num_evaluations
    assert driver.model.num_decodes == 1
    assert results[0].pixels[0].tolist() == results[1].pixels[0].tolist()
    for result in results:
        assert result.is_complete
        if scheduler != "euler-a":
            assert_drawn_right(result)
    steps = [event.step for event in results[1].of_kind(Progress)]
    assert steps == sorted(steps)
    assert steps[-1] == 6


async def test_each_gets_the_file_that_it_asked_for(start) -> None:
    driver = await start(max_rows=8)
    jpeg = OutputOptions(format=ImageFormat.JPEG)
    results = await run_late(
        driver,
        request(num_images=2),
        request(num_images=2, output=jpeg),
        after_calls=1,
    )
    assert [[image.media_type for image in result.images] for result in results] == [
        ["image/png"] * 2,
        ["image/jpeg"] * 2,
    ]
    assert driver.model.num_decodes == 2
    assert_drawn_right(results[0])


@pytest.mark.parametrize("index", [0, 1])
async def test_one_that_is_cancelled_leaves_the_other_its_picture(start, index: int) -> None:
    driver = await start(max_rows=8)
    requests = [request(num_inference_steps=8) for _ in range(2)]
    driver.model.hold()
    streams = [driver.engine.submit(one) for one in requests]
    reading = [
        asyncio.create_task(read(stream, one))
        for stream, one in zip(streams, requests, strict=True)
    ]
    for number in range(3):
        await eventually(lambda number=number: len(driver.model.calls) == number + 1)
        driver.model.release()
    await eventually(lambda: len(driver.model.calls) == 4)
    # While a call of both is on the device.
    driver.engine.cancel(requests[index].generation_id, owner="")
    driver.model.let_go()
    results = [await one for one in reading]
    assert isinstance(results[index].error, Cancelled)
    assert_drawn_right(results[1 - index])
    # The leader's leaving may cost the call that it was in.
    assert len(driver.model.calls) <= 9


@pytest.mark.parametrize(
    "change",
    [
        {"owner": "somebody else"},
        {"seed": 8},
        {"negative_prompt": "dots"},
        {"guidance_scale": 3.0},
        {"num_inference_steps": 7},
        {"scheduler": "euler-a"},
        {"clip_skip": 1},
        {"num_images": 2},
        {"prompt": "another"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_nothing_is_shared_between_different_pictures_or_owners(start, change) -> None:
    driver = await start(max_rows=8)
    common = {"num_inference_steps": 6}
    first, other = request(**common), request(**{**common, **change})
    results = await run_late(driver, first, other, after_calls=2)
    assert all(result.is_complete for result in results)
    num_done = sum(len(call.prompts) for call in driver.model.calls)
    assert num_done >= 6 + other.num_rows * other.num_inference_steps
    assert driver.model.num_decodes == 1 + other.num_images


async def test_those_who_share_take_no_room_in_a_full_call(start) -> None:
    driver = await start(max_rows=1)
    results = await run_late(driver, *(request() for _ in range(5)), after_calls=1)
    assert all(result.is_complete for result in results)
    assert len(driver.model.calls) == 4
