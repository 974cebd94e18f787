"""GenerateImage over a real channel: the events, the seeds, the echo, the chunks."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import io
import sys
from contextlib import aclosing

import grpc
import numpy as np
import pytest
import torch
from PIL import Image

from latentwire.v1 import image_generation_pb2 as pb
from latentwire.v1 import image_generation_pb2_grpc as rpc
from latentwire_server.requests.draft import SourceDraft
from tests.support.eventually import eventually
from tests.support.fakes import FakeModel, FakeSafetyChecker, expected_pixels
from tests.support.server.serving import Serving, events_of, images_of, kind, request, serving


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def noise(image: torch.Tensor, *_: object) -> torch.Tensor:
    """Returns noise, which no file format compresses."""
    return torch.rand_like(image)


async def test_a_generation_streams_its_events_in_order(server: Serving):
    responses = await events_of(server.stub.GenerateImage(request(seed=7, guidance_scale=1.0)))
    kinds = [kind(response) for response in responses]
    assert kinds[0] == "accepted"
    assert kinds[-1] == "completed"
    assert kinds.count("image") == 1
    assert "progress" in kinds
    assert [response.sequence for response in responses] == list(range(1, len(responses) + 1))
    assert len({response.generation for response in responses}) == 1
    assert responses[0].generation.startswith("generations/")
    times = [response.event_time.ToNanoseconds() for response in responses]
    assert times == sorted(times)
    assert times[0] > 0
    fractions = [one.progress.fraction for one in responses if kind(one) == "progress"]
    assert fractions == sorted(fractions)

    (image,) = [response.image for response in responses if kind(response) == "image"]
    assert (image.width, image.height, image.media_type) == (64, 64, "image/png")
    assert image.finish_reason == pb.FINISH_REASON_COMPLETED
    assert image.size_bytes == len(image.data)
    assert image.sha256 == hashlib.sha256(image.data).digest()
    difference = pixels(image.data).astype(int) - expected_pixels("a red circle", seed=7)
    assert np.abs(difference).max() <= 2

    completed = responses[-1].completed
    assert completed.image_count == 1
    assert completed.model_revision == "sha256:fake"
    assert completed.timings.total.ToNanoseconds() > 0


async def test_a_withheld_image_has_no_data_and_no_digest():
    checker = FakeSafetyChecker(lambda number: number == 1)
    async with serving(FakeModel(safety_checker=checker)) as server:
        responses = await events_of(server.stub.GenerateImage(request(seed=7, num_images=2)))
    withheld, shown = [one.image for one in responses if kind(one) == "image"]
    assert withheld.finish_reason == pb.FINISH_REASON_FILTERED
    assert (withheld.index, withheld.seed, withheld.size_bytes) == (0, 7, 0)
    assert (withheld.sha256, withheld.data, withheld.media_type) == (b"", b"", "")
    assert shown.finish_reason == pb.FINISH_REASON_COMPLETED
    assert responses[-1].completed.image_count == 2


async def test_the_synchronous_stub_reads_the_same_events(server: Serving):
    def read() -> list[str]:
        with grpc.insecure_channel(server.address) as channel:
            stub = rpc.ImageGenerationStub(channel)
            return [kind(response) for response in stub.GenerateImage(request())]

    kinds = await asyncio.to_thread(read)
    assert (kinds[0], kinds[-1]) == ("accepted", "completed")


async def test_seed_zero_is_a_seed_and_image_i_uses_seed_plus_i(server: Serving):
    three = await events_of(server.stub.GenerateImage(request(seed=0, num_images=3)))
    assert list(three[0].accepted.seeds) == [0, 1, 2]
    assert three[0].accepted.effective_request.HasField("seed")
    assert [one.image.seed for one in three if kind(one) == "image"] == [0, 1, 2]
    alone = await events_of(server.stub.GenerateImage(request(seed=2)))
    assert np.array_equal(pixels(images_of(three)[2]), pixels(images_of(alone)[0]))


async def test_an_unset_seed_is_chosen_below_two_to_the_32nd_and_reported(server: Serving):
    seeds = set()
    for _ in range(4):
        responses = await events_of(server.stub.GenerateImage(request()))
        seeds.add(responses[0].accepted.effective_request.seed)
    assert len(seeds) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    "sent",
    [
        request(),
        request(guidance_scale=7.3, scheduler=pb.Scheduler(id="euler-a"), num_images=2),
        request(
            negative_prompt="blue",
            width=128,
            seed=5,
            clip_skip=1,
            num_inference_steps=3,
            scheduler=pb.Scheduler(sigmas="karras"),
            output=pb.Output(format=pb.IMAGE_FORMAT_JPEG, quality=70, metadata_omitted=True),
            events=pb.Events(preview_interval_steps=2, preview_max_side=32),
            priority=3,
            user="me",
            labels={"a": "b"},
        ),
    ],
    ids=["least", "float32 guidance", "everything"],
)
async def test_the_effective_request_generates_the_same_bytes(
    server: Serving, sent: pb.GenerateImageRequest
):
    first = await events_of(server.stub.GenerateImage(sent))
    effective = first[0].accepted.effective_request
    second = await events_of(server.stub.GenerateImage(effective))
    assert second[0].accepted.effective_request == effective
    assert images_of(second) == images_of(first)


async def test_the_effective_request_leaves_nothing_to_default(server: Serving):
    responses = await events_of(server.stub.GenerateImage(request(validate_only=True)))
    effective = responses[0].accepted.effective_request
    given = {field.name for field, _ in effective.ListFields()}
    assert given >= {
        "model", "prompt", "width", "height", "num_images", "seed", "num_inference_steps",
        "guidance_scale", "scheduler", "clip_skip", "output", "events", "disconnect_policy",
    }  # fmt: skip
    assert effective.model == "fake"
    assert (effective.width, effective.height) == (64, 64)


async def test_an_unset_side_has_the_models_default(server: Serving):
    responses = await events_of(server.stub.GenerateImage(request(height=128, seed=1)))
    (image,) = [response.image for response in responses if kind(response) == "image"]
    assert (image.width, image.height) == (64, 128)


async def test_validate_only_answers_accepted_and_generates_nothing(server: Serving):
    responses = await events_of(server.stub.GenerateImage(request(validate_only=True, seed=3)))
    assert [kind(response) for response in responses] == ["accepted"]
    assert not responses[0].accepted.effective_request.validate_only
    assert server.model.calls == []
    assert server.model.encoded_prompts == []


async def test_small_messages_reassemble_to_the_same_file():
    model = FakeModel()
    model.decode_faults.append((lambda _: True, noise))
    async with serving(model) as server:
        sent = request(width=512, height=512, output=pb.Output(max_data_bytes=65_536))
        responses = await events_of(server.stub.GenerateImage(sent))
    (image,) = [response.image for response in responses if kind(response) == "image"]
    chunks = [one.image_chunk for one in responses if kind(one) == "image_chunk"]
    assert len(image.data) == 65_536
    assert chunks
    assert all(0 < len(chunk.data) <= 65_536 for chunk in chunks)
    (file,) = images_of(responses)
    assert len(file) == image.size_bytes
    assert hashlib.sha256(file).digest() == image.sha256
    assert [one.sequence for one in responses] == list(range(1, len(responses) + 1))


async def test_a_client_with_default_limits_receives_a_large_noisy_image():
    model = FakeModel()
    model.decode_faults.append((lambda _: True, noise))
    async with serving(model, max_side=1280, max_pixels=1280 * 1280) as server:
        sent = request(width=1280, height=1280, num_inference_steps=1)
        responses = await events_of(server.stub.GenerateImage(sent))
    (file,) = images_of(responses)
    (image,) = [response.image for response in responses if kind(response) == "image"]
    assert len(file) > 4_194_304
    assert hashlib.sha256(file).digest() == image.sha256


async def test_previews_are_image_files(server: Serving):
    sent = request(events=pb.Events(preview_interval_steps=1, preview_max_side=16))
    responses = await events_of(server.stub.GenerateImage(sent))
    previews = [response.preview for response in responses if kind(response) == "preview"]
    assert previews
    for preview in previews:
        image = Image.open(io.BytesIO(preview.data))
        assert image.size == (preview.width, preview.height)
        assert image.get_format_mimetype() == preview.media_type
        assert max(image.size) <= 16


async def test_the_end_of_a_long_prompt_is_quoted_in_a_warning(server: Serving):
    prompt = " ".join(["word"] * 75 + ["dropped", "end"])
    responses = await events_of(
        server.stub.GenerateImage(
            request(prompt, negative_prompt=prompt, guidance_scale=3, validate_only=True)
        )
    )
    warnings = responses[0].accepted.warnings
    assert [one.field for one in warnings] == ["prompt", "negative_prompt"]
    assert {one.reason for one in warnings} == {"PROMPT_TRUNCATED"}
    assert all("dropped end" in one.message for one in warnings)
    assert {one.replacement for one in warnings} == {" ".join(["word"] * 75)}


@pytest.mark.parametrize("name", ["", "fake", "models/fake", "fake-alias", "other"])
async def test_a_model_has_several_names(name: str):
    async with serving(model_aliases="other") as server:
        responses = await events_of(
            server.stub.GenerateImage(request(model=name, validate_only=True))
        )
    assert responses[0].accepted.effective_request.model == "fake"


@pytest.mark.parametrize("request_id", ["", "8FCB68FF-51DD-49E4-A100-9EAF1F823949"])
async def test_the_callers_message_is_neither_changed_nor_kept(server: Serving, request_id: str):
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    source = pb.ImageToImage(image=pb.InputImage(data=file.getvalue()))
    sent = request(image_to_image=source, request_id=request_id)
    same = pb.GenerateImageRequest.FromString(sent.SerializeToString())
    num_references = sys.getrefcount(sent)
    server.model.hold()
    responses = server.app._service.generate(sent, owner="", time_remaining_s=None)
    async with aclosing(responses):
        assert kind(await anext(responses)) == "accepted"
        await eventually(lambda: server.model.calls)
        assert sent == same
        assert sys.getrefcount(sent) == num_references
        assert not any(type(one) is SourceDraft for one in gc.get_objects())
        server.model.let_go()
        assert kind([response async for response in responses][-1]) == "completed"
