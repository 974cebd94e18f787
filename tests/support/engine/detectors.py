"""Checks of the engine, which also have to detect engines that are broken on purpose."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from latentwire_server.engine.errors import Cancelled, NonFiniteOutput
from latentwire_server.engine.events import Accepted, Completed, Image, Progress
from latentwire_server.engine.request import OutputOptions
from latentwire_server.engine.settings import Batching
from latentwire_server.engine.snapshots import GenerationState
from tests.support.engine.driving import Driver, read
from tests.support.engine.requests import request
from tests.support.eventually import eventually
from tests.support.fake_faults import on_call, spoiling
from tests.support.fakes import FakeModel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NUM_STEPS = 60


async def check_late_reader(start: Callable[..., Awaitable[Driver]]) -> None:
    """A reader that starts after the end gets every lossless event and the newest progress."""
    driver = await start()
    wanted = request(num_images=2, num_inference_steps=NUM_STEPS)
    async with driver.submit(wanted) as stream:
        await eventually(lambda: driver.state(wanted) is GenerationState.SUCCEEDED)
        assert len(stream._channel._waiting) <= 6
        result = await read(stream, wanted)
    kinds = [type(event) for event in result.events]
    assert kinds == [Accepted, Image, Progress, Image, Completed]
    assert [image.index for image in result.images] == [0, 1]


async def check_cancelled_is_in_no_later_call(start: Callable[..., Awaitable[Driver]]) -> None:
    """A generation that is cancelled inside a call is absent from the next one."""
    driver = await start(max_rows=4)
    victim, other = request("victim", num_inference_steps=8), request("other")
    driver.model.hold()
    streams = [driver.submit(one) for one in (victim, other)]
    await eventually(lambda: driver.model.calls_with("victim"))
    num_calls = len(driver.model.calls_with("victim"))
    driver.engine.cancel(victim.generation_id, owner="")
    driver.model.let_go()
    cancelled = await read(streams[0], victim)
    completed = await read(streams[1], other)
    assert isinstance(cancelled.error, Cancelled)
    assert completed.is_complete
    num_calls_after = len(driver.model.calls_with("victim"))
    assert num_calls_after == num_calls


async def check_bad_row_ends_only_its_own(
    start: Callable[..., Awaitable[Driver]], *, value: float = math.nan, call: int = 3
) -> None:
    """A non-finite row ends its generation and does not change a byte of the other files."""
    prompts = ["one", "two", "bad", "four"]
    options = OutputOptions(metadata_omitted=True)
    files = []
    for faults in ([], [(on_call(call), spoiling("bad", value))]):
        driver = await start(
            FakeModel(faults=list(faults)), batching=Batching.REPRODUCIBLE, max_rows=8
        )
        results = await driver.run_held(
            *[request(prompt, output=options, guidance_scale=2.0) for prompt in prompts]
        )
        files.append([[image.data for image in result.images] for result in results])
        bad = results[2]
    assert isinstance(bad.error, NonFiniteOutput)
    assert bad.images == []
    assert [files[1][index] for index in (0, 1, 3)] == [files[0][index] for index in (0, 1, 3)]
    assert all(files[0])
