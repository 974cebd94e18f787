"""Everything that can fail in the device loop, and which generations it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
from typing import TYPE_CHECKING

import pytest
import torch

from latentwire_server.engine.device import finishing
from latentwire_server.engine.device.denoising import Row
from latentwire_server.engine.errors import (
    DeviceFailed,
    DeviceOutOfMemory,
    NonFiniteOutput,
    PipelineFailed,
)
from latentwire_server.engine.events import Completed
from latentwire_server.engine.queue.housekeeping import Housekeeper
from latentwire_server.engine.request import EventOptions as Events
from latentwire_server.engine.request import PreviewMethod
from latentwire_server.engine.settings import Batching
from latentwire_server.engine.snapshots import GenerationState
from latentwire_server.models.protocol import DenoiserInput
from tests.support.engine.detectors import check_bad_row_ends_only_its_own
from tests.support.engine.driving import assert_expected_images
from tests.support.engine.requests import request
from tests.support.eventually import eventually
from tests.support.fake_faults import (
    above_rows,
    filled_with,
    from_call,
    on_call,
    raising,
    spoiling,
    with_prompt,
)
from tests.support.fakes import FakeModel
from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from tests.support.engine.driving import Result

BUG = KeyError("bug")
LAUNCH_FAILED = "CUDA error: unspecified launch failure"
CPU_OUT_OF_MEMORY = "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried 1 GB"


def assert_all_expected(*results: Result) -> None:
    for result in results:
        assert_expected_images(result)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("call", [2, 4])
async def test_a_bad_row_ends_only_its_own_generation(start, value: float, call: int) -> None:
    await check_bad_row_ends_only_its_own(start, value=value, call=call)


async def test_latents_that_overflow_end_their_own_generation(start) -> None:
    # 3e38 is finite; guidance makes it overflow after the denoiser was checked.
    faults = [(on_call(2), spoiling("bad", 3e38))]
    driver = await start(FakeModel(faults=faults))
    bad, good = await driver.run_held(
        request("bad", guidance_scale=7.0), request("good", guidance_scale=2.0)
    )
    assert_all_expected(good)
    assert isinstance(bad.error, NonFiniteOutput)
    assert bad.images == []


async def test_an_image_that_decodes_to_nan_is_an_error_not_a_black_image(start) -> None:
    driver = await start(FakeModel(decode_faults=[(on_call(1), filled_with(math.nan))]))
    bad = await driver.run(request())
    assert isinstance(bad.error, NonFiniteOutput)
    assert bad.error.step == 4
    assert bad.images == []
    assert_all_expected(await driver.run(request()))


async def test_a_second_image_that_is_nan_leaves_the_first_delivered(start) -> None:
    driver = await start(FakeModel(decode_faults=[(on_call(2), filled_with(math.nan))]))
    bad = await driver.run(request(num_images=3))
    assert isinstance(bad.error, NonFiniteOutput)
    assert [image.index for image in bad.images] == [0]


async def test_a_scheduler_that_raises_ends_only_its_own_generation(start, caplog) -> None:
    model = FakeModel(scheduler_faults={("heun", 3): ValueError("secret detail")})
    driver = await start(model)
    bad, *good = await driver.run_held(
        request("bad", scheduler="heun"), request("good"), request("fine", guidance_scale=2.0)
    )
    assert isinstance(bad.error, PipelineFailed)
    assert bad.error.error_id in caplog.text
    assert "secret detail" in caplog.text
    assert "secret detail" not in str(bad.error)
    assert_all_expected(*good)
    assert driver.state(bad.request) is GenerationState.FAILED


async def test_a_decoder_that_raises_ends_only_its_own_generation(start) -> None:
    driver = await start(
        FakeModel(decode_faults=[(on_call(1), raising(lambda: ValueError("broken")))])
    )
    bad, good = await driver.run_held(
        request("bad", num_inference_steps=2), request("good", num_inference_steps=8)
    )
    assert isinstance(bad.error, PipelineFailed)
    assert_all_expected(good)


@pytest.mark.parametrize("device_name", ["cpu", "cpu:0"])
async def test_an_image_encoder_that_raises_ends_only_its_own_generation(
    start, monkeypatch, device_name: str
) -> None:
    encode_image = finishing.encode_image

    def encode(pixels, *, description, **options):
        if '"bad"' in description:
            raise OSError(28, "disk full")
        return encode_image(pixels, description=description, **options)

    monkeypatch.setattr(finishing, "encode_image", encode)
    driver = await start(FakeModel(device_name=device_name))
    bad, good = await driver.run_held(request("bad"), request("good"))
    assert isinstance(bad.error, PipelineFailed)
    assert_all_expected(good)


async def test_a_preview_that_raises_ends_only_its_own_generation(start) -> None:
    driver = await start(
        FakeModel(decode_faults=[(on_call(1), raising(lambda: ValueError("broken")))])
    )
    events = Events(preview_interval_steps=1, preview_method=PreviewMethod.FULL_VAE)
    bad, good = await driver.run_held(request("bad", events=events), request("good"))
    assert isinstance(bad.error, PipelineFailed)
    assert_all_expected(good)


async def test_a_prompt_that_cannot_be_encoded_ends_only_its_own_generation(
    start, monkeypatch
) -> None:
    driver = await start()
    encode_prompt = driver.model.encode_prompt

    def encode(prompt: str, **options: int):
        if prompt == "bad":
            raise ValueError(prompt)
        return encode_prompt(prompt, **options)

    monkeypatch.setattr(driver.model, "encode_prompt", encode)
    bad, good = await driver.run_all(request("bad"), request("good"))
    assert isinstance(bad.error, PipelineFailed)
    assert_all_expected(good)


@pytest.mark.parametrize(
    "error",
    [lambda: torch.OutOfMemoryError("CUDA out of memory"), lambda: RuntimeError(CPU_OUT_OF_MEMORY)],
)
async def test_a_batch_that_does_not_fit_is_split_until_it_does(start, error) -> None:
    driver = await start(FakeModel(faults=[(above_rows(2), raising(error))]), max_rows=8)
    results = await driver.run_held(
        *[request(prompt, guidance_scale=2.0) for prompt in "abc"], request("d", num_images=5)
    )
    assert_all_expected(*results)
    failed = [call for call in driver.model.calls if call.num_rows > 2]
    # 8 rows, then 4: lowered once, not tried again at every step.
    assert len(failed) <= 4


async def test_reproducible_padding_shrinks_before_a_generation_fails(start) -> None:
    out_of_memory = raising(lambda: torch.OutOfMemoryError("CUDA out of memory"))
    driver = await start(
        FakeModel(faults=[(above_rows(2), out_of_memory)]),
        max_rows=8,
        batching=Batching.REPRODUCIBLE,
    )
    assert_all_expected(await driver.run(request("alone")))
    assert [call.num_rows for call in driver.model.calls[:3]] == [8, 4, 2]


async def test_a_generation_that_does_not_fit_alone_fails_and_the_next_succeeds(start) -> None:
    out_of_memory = raising(lambda: torch.OutOfMemoryError("CUDA out of memory"))
    driver = await start(FakeModel(faults=[(with_prompt("large"), out_of_memory)]))
    large, small = await driver.run_held(request("large", num_images=2), request("small"))
    assert isinstance(large.error, DeviceOutOfMemory)
    assert (large.error.width, large.error.height, large.error.num_images) == (64, 64, 2)
    assert_all_expected(small, await driver.run(request("next")))


async def test_decoding_that_does_not_fit_ends_its_own_generation(start) -> None:
    out_of_memory = raising(lambda: torch.OutOfMemoryError("CUDA out of memory"))
    driver = await start(FakeModel(decode_faults=[(on_call(1), out_of_memory)]))
    result = await driver.run(request())
    assert isinstance(result.error, DeviceOutOfMemory)
    assert_all_expected(await driver.run(request()))


async def test_a_batch_that_ran_out_of_memory_leaves_no_references(start) -> None:
    out_of_memory = raising(lambda: torch.OutOfMemoryError("CUDA out of memory"))
    driver = await start(FakeModel(faults=[(above_rows(1), out_of_memory)]), max_rows=8)
    results = await driver.run_held(*[request(prompt) for prompt in "abcd"])
    assert_all_expected(*results)
    gc.collect()
    assert [type(one) for one in gc.get_objects() if type(one) in {Row, DenoiserInput}] == []


async def test_a_failed_call_is_retried_one_generation_at_a_time(start) -> None:
    driver = await start(FakeModel(faults=[(on_call(3), raising(lambda: RuntimeError("odd")))]))
    results = await driver.run_held(*[request(prompt) for prompt in "abcd"])
    assert_all_expected(*results)
    again = [call.prompts for call in driver.model.calls[3:7]]
    assert all(len(set(prompts)) == 1 for prompts in again)


async def test_a_generation_that_breaks_every_call_fails_alone(start, caplog) -> None:
    broken = raising(lambda: RuntimeError("odd"))
    driver = await start(FakeModel(faults=[(with_prompt("bad"), broken)]))
    results = await driver.run_held(*[request(prompt) for prompt in ("a", "bad", "c")])
    assert isinstance(results[1].error, PipelineFailed)
    assert results[1].error.error_id in caplog.text
    assert_all_expected(results[0], results[2])


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.AcceleratorError("CUDA error: device-side assert triggered"),
        lambda: RuntimeError("CUDA error: an illegal memory access was encountered"),
    ],
)
async def test_a_broken_device_ends_everything_and_nothing_succeeds_after(start, error) -> None:
    driver = await start(FakeModel(faults=[(from_call(5), raising(error))]), max_running=3)
    requests = [request(prompt, num_inference_steps=20) for prompt in "abcde"]
    results = await driver.run_held(*requests)
    assert all(isinstance(result.error, DeviceFailed) for result in results)
    assert not any(result.of_kind(Completed) for result in results)
    assert driver.engine.failed.is_set()
    assert driver.engine.status().has_failed
    with pytest.raises(DeviceFailed):
        driver.submit(request())
    assert len(driver.model.calls) == 5


async def test_a_device_that_breaks_while_decoding_is_broken_too(start) -> None:
    error = raising(lambda: torch.AcceleratorError("CUDA error: unspecified launch failure"))
    driver = await start(FakeModel(decode_faults=[(on_call(1), error)]))
    result = await driver.run(request())
    assert isinstance(result.error, DeviceFailed)
    assert driver.engine.failed.is_set()


async def test_a_bug_in_the_loop_itself_ends_everything(start, monkeypatch, caplog) -> None:
    caplog.set_level(logging.CRITICAL)
    driver = await start()

    def choose(*_):
        raise BUG

    monkeypatch.setattr("latentwire_server.engine.policy.policy.Policy.choose", choose)
    stream = driver.submit(request())
    await asyncio.wait_for(driver.engine.failed.wait(), timeout=scaled(10))
    with pytest.raises(DeviceFailed):
        async for _ in stream:
            pass
    assert "bug" in caplog.text


async def test_the_engine_keeps_working_after_faults_of_single_generations(start) -> None:
    faults = [(with_prompt("nan"), spoiling("nan", math.nan))]
    driver = await start(FakeModel(faults=faults), max_running=2)
    results = await driver.run_all(
        *[request(prompt) for prompt in ("nan", "a", "nan", "b", "nan", "c")]
    )
    assert [result.is_complete for result in results] == [False, True] * 3
    await eventually(lambda: driver.engine.status().running_count == 0)
    assert driver.engine.status().queued_count == 0


async def test_a_bug_in_housekeeping_fails_the_engine(start, monkeypatch, caplog) -> None:
    driver = await start()

    def check(*_):
        raise BUG

    monkeypatch.setattr(Housekeeper, "check", check)
    stream = driver.submit(request())
    await asyncio.wait_for(driver.engine.failed.wait(), timeout=scaled(10))
    await stream.aclose()
    assert "housekeeping failed" in caplog.text
    assert driver.engine.status().has_failed


async def test_a_device_error_in_the_image_encoder_ends_the_generation(start, monkeypatch) -> None:
    def encode(pixels, **options):
        raise RuntimeError(LAUNCH_FAILED)

    monkeypatch.setattr(finishing, "encode_image", encode)
    driver = await start(FakeModel(device_name="cpu:0"))
    assert isinstance((await driver.run(request())).error, DeviceFailed)
