"""The engine through its public interface, with a model whose images can be computed by hand."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from functools import partial

import pytest

from latentwire_server.engine.device import loop
from latentwire_server.engine.device.prompt_encoding import PromptEncoder
from latentwire_server.engine.diffusion.trajectory import Trajectory
from latentwire_server.engine.engine import Engine
from latentwire_server.engine.errors import GenerationNotFound
from latentwire_server.engine.events import Progress
from latentwire_server.engine.handover.channel import Channel
from latentwire_server.engine.request import ImageFormat, OutputOptions
from latentwire_server.engine.settings import Batching, EngineSettings
from latentwire_server.engine.snapshots import GenerationState
from tests.support.engine.driving import assert_expected_images, read
from tests.support.engine.requests import request
from tests.support.eventually import eventually
from tests.support.fakes import FakeModel


async def test_an_image_shows_its_prompt_and_its_seed(start) -> None:
    driver = await start()
    results = [await driver.run(request(prompt, seed=seed)) for prompt in "ab" for seed in (0, 1)]
    for result in results:
        assert_expected_images(result)
    assert len({result.images[0].data for result in results}) == 4


async def test_mixed_concurrent_requests_get_the_expected_images(start) -> None:
    driver = await start(max_rows=6, max_running=5)
    results = await driver.run_all(
        request("plain"),
        request("guided", guidance_scale=3.0, num_inference_steps=9),
        request("negative", guidance_scale=2.0, negative_prompt="blue"),
        request("pair", num_images=2, guidance_scale=2.0, scheduler="heun"),
        request("wide", width=128, height=64, num_inference_steps=2),
        request("tall", width=64, height=128),
        request("many", num_images=7, guidance_scale=1.5),
        request("quick", num_inference_steps=1),
        request("important", priority=5),
    )
    for result in results:
        assert_expected_images(result)
    assert max(call.num_rows for call in driver.model.calls) <= 6


async def test_steps_of_different_requests_share_calls(start) -> None:
    driver = await start(max_rows=8)
    await driver.run_held(*[request(prompt) for prompt in "abcd"])
    shared = [call for call in driver.model.calls if len(set(call.prompts)) == 4]
    assert len(shared) >= 3
    assert any(len(set(call.timesteps)) > 1 for call in driver.model.calls)


async def test_equal_requests_are_generated_separately(start) -> None:
    driver = await start(max_rows=8)
    equals = [request() for _ in range(3)]
    for result in await driver.run_held(*equals):
        assert_expected_images(result)
    assert sum(call.num_rows for call in driver.model.calls) == 3 * equals[0].num_inference_steps
    assert driver.model.num_decodes == 3


async def test_reproducible_calls_always_have_the_same_size(start) -> None:
    driver = await start(batching=Batching.REPRODUCIBLE, max_rows=4)
    await driver.run_all(request("a"), request("b", num_images=3), request("c", num_images=5))
    assert {call.num_rows for call in driver.model.calls} == {4}


@pytest.mark.parametrize("image_format", ImageFormat)
async def test_images_come_in_the_requested_format(start, image_format: ImageFormat) -> None:
    driver = await start()
    options = OutputOptions(format=image_format, quality=95)
    result = await driver.run(request(output=options))
    assert result.images[0].media_type == f"image/{image_format.value}"
    assert result.pixels[0].shape == (64, 64, 3)


async def test_a_file_contains_the_request_that_generates_it_again(start) -> None:
    driver = await start()
    result = await driver.run(request("twice", num_images=2, seed=2**63 - 1))
    data = result.images[1].data
    text = data[data.index(b'{"latentwire"') :].split(b"}}}")[0] + b"}}}"
    described = json.loads(text)["request"]
    assert described["prompt"] == "twice"
    assert described["seed"] == result.images[1].seed == 0
    again = await driver.run(request(described["prompt"], seed=described["seed"]))
    assert (again.pixels[0] == result.pixels[1]).all()


async def test_metadata_omitted_leaves_the_description_out_of_the_file(start) -> None:
    driver = await start()
    result = await driver.run(request("secret", output=OutputOptions(metadata_omitted=True)))
    assert b"secret" not in result.images[0].data
    assert b"latentwire" not in result.images[0].data


async def test_accepted_warns_about_truncated_prompts(start) -> None:
    driver = await start()
    prompt = " ".join(f"w{number}" for number in range(80))
    guided = request(prompt, negative_prompt=prompt, guidance_scale=2.0)
    for wanted, fields in ((request(prompt), ["prompt"]), (guided, ["prompt", "negative_prompt"])):
        accepted = (await driver.run(wanted)).events[0]
        assert [warning.field for warning in accepted.warnings] == fields
        assert {warning.reason for warning in accepted.warnings} == {"PROMPT_TRUNCATED"}
        assert "w75 w76 w77 w78 w79" in accepted.warnings[0].message


async def test_a_prompt_is_encoded_once_per_owner(start) -> None:
    driver = await start()
    for owner in ("ann", "ann", "bob"):
        assert_expected_images(await driver.run(request("again", owner=owner)))
    assert driver.model.encoded_prompts == ["again", "again"]


async def test_the_least_recently_used_prompts_are_evicted_first(
    start, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_prompt = FakeModel().encode_prompt("any", clip_skip=0).num_bytes
    monkeypatch.setattr(
        loop, "PromptEncoder", partial(PromptEncoder, capacity_bytes=2 * one_prompt)
    )
    driver = await start()
    for prompt in ("first", "second", "first", "third", "first", "second"):
        await driver.run(request(prompt))
    assert driver.model.encoded_prompts == ["first", "second", "third", "second"]


async def test_image_files_are_encoded_in_a_pool_unless_the_device_is_the_cpu(start) -> None:
    driver = await start(FakeModel(device_name="cpu:0"))
    result = await driver.run(request(num_images=3))
    assert result.is_complete
    assert sorted(image.index for image in result.images) == [0, 1, 2]
    names = {thread.name for thread in threading.enumerate()}
    assert any(name.startswith("latentwire-encode") for name in names)


async def test_only_the_owner_finds_a_generation(start) -> None:
    driver = await start()
    wanted = request(owner="ann")
    await driver.run(wanted)
    assert driver.engine.get(wanted.generation_id, owner="ann").state is GenerationState.SUCCEEDED
    for method in (driver.engine.get, driver.engine.cancel):
        with pytest.raises(GenerationNotFound):
            method(wanted.generation_id, owner="bob")
        with pytest.raises(GenerationNotFound):
            method("unknown", owner="ann")


async def test_generations_are_listed_per_owner_in_the_order_they_will_run(start) -> None:
    driver = await start(max_running=1)
    driver.model.hold()
    running, low, high = request("a"), request("b"), request("c", priority=3)
    foreign = request("d", owner="bob")
    streams = [driver.submit(running)]
    await eventually(lambda: driver.model.calls)
    streams += [driver.submit(one) for one in (low, high, foreign)]
    listed = driver.engine.list(owner="")
    assert [one.request.prompt for one in listed] == ["a", "c", "b"]
    assert [one.ahead_count for one in listed] == [0, 0, 1]
    assert [one.state.value for one in listed] == ["running", "queued", "queued"]
    assert [one.request.prompt for one in driver.engine.list(owner="bob")] == ["d"]
    status = driver.engine.status()
    assert (status.queued_count, status.running_count) == (3, 1)
    for stream in streams:
        await stream.aclose()
    assert driver.engine.list(owner="") == ()


async def test_a_snapshot_follows_the_generation(start) -> None:
    driver = await start()
    driver.model.hold()
    wanted = request(num_inference_steps=4)
    stream = driver.submit(wanted)
    driver.model.release(2)
    await eventually(lambda: driver.engine.get(wanted.generation_id, owner="").step == 2)
    snapshot = driver.engine.get(wanted.generation_id, owner="")
    assert 0 < snapshot.fraction < 1
    assert snapshot.end_time is None
    driver.model.let_go()
    await read(stream, wanted)
    snapshot = driver.engine.get(wanted.generation_id, owner="")
    assert (snapshot.step, snapshot.fraction) == (4, 1.0)
    assert snapshot.end_time >= snapshot.create_time


async def test_a_model_added_later_can_generate(start) -> None:
    driver = await start()
    driver.add_model(FakeModel(id="second"))
    assert_expected_images(await driver.run(request(model="second")))


async def test_models_do_not_share_calls_and_take_turns(start) -> None:
    second = FakeModel(id="second")
    driver = await start()
    driver.add_model(second)
    results = await driver.run_all(request("a"), request("b", model="second"))
    for result in results:
        assert_expected_images(result)
    assert all(set(call.prompts) == {"b"} for call in second.calls)


async def test_the_device_thread_sleeps_when_there_is_nothing_to_do(start) -> None:
    driver = await start()
    await driver.run(request())
    before = time.process_time()
    await asyncio.sleep(0.3)  # The pause is what is measured.
    assert time.process_time() - before < 0.1


async def test_a_garbage_collected_stream_warns_and_cancels_its_generation(
    start,
) -> None:
    driver = await start()
    driver.model.hold()
    wanted = request()
    stream = driver.submit(wanted)
    await eventually(lambda: driver.model.calls)
    streams = [stream]
    del stream
    with pytest.warns(ResourceWarning, match=wanted.generation_id):
        streams.clear()
    await eventually(lambda: driver.state(wanted) is GenerationState.CANCELLED)


def tracked_objects() -> list[Trajectory | Channel]:
    gc.collect()
    return [one for one in gc.get_objects() if type(one) in {Trajectory, Channel}]


async def test_nothing_is_left_behind_after_many_generations(start) -> None:
    # The traceback of another test's error may hold some.
    earlier = tracked_objects()
    driver = await start()
    for _ in range(5):
        results = await driver.run_all(*[request(prompt) for prompt in "abcdef"])
        assert all(result.is_complete for result in results)
    del results
    await driver.engine.aclose()
    driver.engine = Engine(EngineSettings())
    # The last wake-ups of the event loop still hold their channels.
    await eventually(lambda: all(any(one is held for held in earlier) for one in tracked_objects()))


async def test_closing_twice_or_before_starting_is_harmless(start) -> None:
    driver = await start()
    await driver.engine.aclose()
    await driver.engine.aclose()
    await Engine(EngineSettings()).aclose()


async def test_trajectories_in_the_same_phase_share_calls(start) -> None:
    refiner = FakeModel(id="fake/refiner")
    driver = await start(FakeModel(refiner=refiner), max_rows=8)
    shares = {"high_noise_frac": 0.5, "num_inference_steps": 8}
    refined = [request(prompt=name, **shares) for name in ("a", "b")]
    plain = request(prompt="c", high_noise_frac=1.0, num_inference_steps=8)
    results = await driver.run_held(*refined, plain)
    for result in results:
        assert_expected_images(result)
        progress = [event for event in result.of_kind(Progress) if event.step]
        assert [event.step for event in progress] == sorted(event.step for event in progress)
        assert {event.step_count for event in progress} == {8}
        assert progress[-1].step == 8
    assert {call.prompts for call in refiner.calls} <= {("a",), ("b",), ("a", "b"), ("b", "a")}
    assert sum(call.num_rows for call in refiner.calls) == 8
    assert len(refiner.calls) < 8
    assert sum(call.num_rows for call in driver.model.calls) == 4 + 4 + 8
    assert driver.model.num_decodes == 3
    assert refiner.num_decodes == 0
