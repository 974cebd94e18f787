"""Images as server-sent events: the bytes, and how OpenAI's own client reads them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json

import grpc
import openai
import pytest
import torch
from google.rpc import error_details_pb2
from PIL import Image

from tests.support.bridge.bridging import bridging
from tests.support.bridge.event_streams import events_in
from tests.support.bridge.images import data_url, file_of, plain_image
from tests.support.client.scripted_server import Abort, accepted, numbered, progress
from tests.support.fakes import FakeSafetyChecker

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
STEP_S = 0.1
COMMON_FIELDS = {"type", "b64_json", "created_at", "size", "quality", "background", "output_format"}


def image_in(event: dict) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(event["b64_json"], validate=True)))
    image.load()
    return image


async def streamed(bridge, **fields: object) -> list[dict]:
    answer = await bridge.generate(stream=True, **fields)
    assert answer.status == 200, answer.data
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["x-request-id"]
    float(answer.headers["openai-processing-ms"])
    return events_in(answer.data)


async def test_without_partial_images_the_only_event_is_the_image(bridge):
    (event,) = await streamed(bridge, seed=5)
    assert set(event) == COMMON_FIELDS | {"usage", "image_index", "seed"}
    assert event["type"] == "image_generation.completed"
    assert image_in(event).size == (64, 64)
    assert (event["size"], event["output_format"], event["seed"]) == ("64x64", "png", 5)
    plain = await bridge.generate(seed=5)
    assert event["b64_json"] == plain.json["data"][0]["b64_json"]
    assert event["usage"] == plain.json["usage"]
    assert event["usage"]["output_tokens"] == 4


@pytest.mark.parametrize("partial_images", [1, 2, 3])
@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_partial_images_are_spread_evenly_over_the_steps(
    bridge, server, partial_images, output_format
):
    # A client that reads more slowly than the model takes steps gets only the newest preview.
    server.model.call_s = STEP_S
    *partials, last = await streamed(
        bridge,
        partial_images=partial_images,
        num_inference_steps=8,
        output_format=output_format,
    )
    assert last["type"] == "image_generation.completed"
    assert [event["partial_image_index"] for event in partials] == list(range(partial_images))
    expected = {1: [4], 2: [3, 6], 3: [2, 4, 6]}
    assert [event["step"] for event in partials] == expected[partial_images]
    for event in partials:
        assert set(event) == COMMON_FIELDS | {"partial_image_index", "image_index", "step"}
        assert event["output_format"] == output_format
        assert image_in(event).format == output_format.upper()
        assert image_in(event).size == (64, 64)


@pytest.mark.parametrize(
    ("num_steps", "expected"), [(7, [2, 4, 6]), (10, [3, 6, 9]), (15, [4, 8, 12]), (4, [1, 2, 3])]
)
async def test_partial_images_are_spread_evenly_when_the_steps_do_not_divide(
    bridge, server, num_steps, expected
):
    server.model.call_s = STEP_S
    *partials, _ = await streamed(bridge, partial_images=3, num_inference_steps=num_steps)
    assert [event["step"] for event in partials] == expected


async def test_partial_images_are_decoded_by_the_model(bridge, server):
    server.model.call_s = STEP_S
    num_decodes = server.model.num_decodes
    await streamed(bridge, partial_images=2, num_inference_steps=8)
    assert server.model.num_decodes - num_decodes == 3


async def test_partial_images_are_spread_over_the_default_steps_too(bridge, server):
    server.model.call_s = STEP_S
    partial, _ = await streamed(bridge, partial_images=1)
    assert partial["step"] == 2


async def test_each_of_several_images_has_its_own_event(bridge, server):
    server.model.call_s = STEP_S
    events = await streamed(bridge, n=3, seed=7, partial_images=1)
    completed = [event for event in events if event["type"].endswith("completed")]
    partials = [event for event in events if event["type"].endswith("partial_image")]
    assert [(event["image_index"], event["seed"]) for event in completed] == [
        (0, 7),
        (1, 8),
        (2, 9),
    ]
    assert sorted(event["image_index"] for event in partials) == [0, 1, 2]
    assert {event["partial_image_index"] for event in partials} == {0}


async def test_progress_events_are_sent_only_on_request(bridge, server):
    server.model.call_s = STEP_S
    events = await streamed(bridge, progress=True, num_inference_steps=4)
    reports = [event for event in events if event["type"] == "latentwire.progress"]
    # The decoding phase starts at once, and its event replaces the last one of denoising.
    steps = [event["step"] for event in reports if event["phase"] == "denoising"]
    assert steps[:3] == [1, 2, 3]
    assert set(reports[0]) == {
        "type", "phase", "step", "step_count", "fraction", "estimated_remaining_s"
    }  # fmt: skip


async def test_an_edit_has_its_own_event_types(bridge, server):
    server.model.call_s = STEP_S
    images = [{"image_url": data_url(file_of(plain_image()))}]
    body = {"prompt": "x", "images": images, "num_inference_steps": 10}
    body |= {"stream": True, "partial_images": 1, "strength": 0.6}
    answer = await bridge.send("POST", EDITS, json=body)
    partial, completed = events_in(answer.data)
    assert (partial["type"], completed["type"]) == (
        "image_edit.partial_image",
        "image_edit.completed",
    )
    assert partial["step"] == 3
    assert completed["usage"]["output_tokens"] == 6


@pytest.mark.parametrize(
    "invalid", [{"size": "63x64"}, {"model": "unknown"}, {"n": 99}, {"response_format": "url"}]
)
async def test_invalid_requests_are_refused_before_the_stream_opens(bridge, server, invalid):
    answer = await bridge.generate(stream=True, partial_images=1, **invalid)
    assert answer.status in {400, 404}
    assert answer.error["message"]
    assert server.model.calls == []


@pytest.mark.parametrize("stream", [None, False])
async def test_without_streaming_the_answer_is_json(bridge, stream):
    answer = await bridge.generate(stream=stream, partial_images=2)
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.json["data"][0]["b64_json"]


async def test_a_failure_mid_stream_is_an_event_that_clients_raise(scripted_bridge, servicer):
    info = error_details_pb2.ErrorInfo(reason="PIPELINE_ERROR", domain="latentwire.v1")
    failure = Abort(grpc.StatusCode.INTERNAL, "the pipeline failed", (info,))
    servicer.script = numbered(accepted(), progress(1, 4), failure)
    answer = await scripted_bridge.generate(stream=True)
    (event,) = events_in(answer.data)
    assert set(event["error"]) == {"message", "type", "param", "code"}
    assert event["error"]["code"] == "pipeline_error"

    async with openai.AsyncOpenAI(
        base_url=f"{scripted_bridge.url}/v1", api_key="any", max_retries=0
    ) as client:
        stream = await client.images.generate(prompt="a", stream=True)
        with pytest.raises(openai.APIError) as caught:
            [event async for event in stream]
        assert caught.value.code == "pipeline_error"


async def test_a_withheld_image_is_reported_without_being_mistaken_for_an_image(bridge, server):
    server.model.safety_checker = FakeSafetyChecker(lambda number: number % 2 == 0)
    async with openai.AsyncOpenAI(
        base_url=f"{bridge.url}/v1", api_key="any", max_retries=0
    ) as client:
        stream = await client.images.generate(prompt="a", n=2, stream=True, partial_images=3)
        assert [event.type async for event in stream] == ["image_generation.completed"]

    plain = await bridge.generate(n=2, stream=True, seed=7)
    assert b": image 1 was withheld by a safety filter\n\n" in plain.data
    events = await streamed(bridge, n=2, progress=True, seed=8)
    withheld = [event for event in events if event["type"] == "latentwire.withheld"]
    assert [(event["image_index"], event["seed"], event["code"]) for event in withheld] == [
        (1, 9, "content_policy_violation")
    ]


async def test_warnings_precede_the_image_and_are_repeated_in_its_event(bridge, server):
    server.model.safety_checker = FakeSafetyChecker(lambda _: False)
    fields = {"prompt": "a \n\ndata: b " * 30, "partial_images": 1, "n": 2}
    plain = await bridge.generate(stream=True, **fields)
    comments = [block for block in plain.data.split(b"\n\n") if block.startswith(b": ")]
    assert len(comments) == 2
    assert plain.data.startswith(b"\n\n".join(comments))
    warnings = [event["warnings"] for event in events_in(plain.data)]
    assert warnings == [warnings[0]] * 2
    assert sorted((one["param"], one["code"]) for one in warnings[0]) == [
        ("partial_images", "previews_withheld"),
        ("prompt", "prompt_truncated"),
    ]

    first, second, *_ = await streamed(bridge, progress=True, **fields)
    event_type = {"type": "latentwire.warning"}
    assert [first, second] == [event_type | one for one in warnings[0]]
    assert "warnings" not in (await streamed(bridge))[0]


async def test_openais_client_reads_a_stream_with_warnings(bridge):
    async with openai.AsyncOpenAI(
        base_url=f"{bridge.url}/v1", api_key="any", max_retries=0
    ) as client:
        stream = await client.images.generate(prompt="a b " * 99, stream=True)
        (event,) = [event async for event in stream]
    assert event.type == "image_generation.completed"
    assert event.warnings[0]["code"] == "prompt_truncated"


async def test_a_stream_with_every_image_withheld_ends_with_an_error(bridge, server):
    server.model.safety_checker = FakeSafetyChecker(lambda _: True)
    (event,) = await streamed(bridge, n=2)
    assert event["error"]["code"] == "content_policy_violation"


async def test_comments_keep_a_silent_stream_alive(server):
    async with bridging(server.address, keep_alive_s=0.05) as bridge:
        server.model.hold()
        generating = asyncio.create_task(bridge.generate(stream=True))
        await asyncio.sleep(0.4)
        server.model.let_go()
        answer = await generating
    assert answer.data.count(b": still generating\n\n") >= 3
    assert len(events_in(answer.data)) == 1


async def test_a_client_that_disconnects_stops_the_generation(bridge, server):
    server.model.call_s = 0.05
    body = {"prompt": "x", "stream": True, "progress": True, "num_inference_steps": 100}
    async with bridge.session.post(bridge.url + GENERATIONS, json=body) as response:
        await response.content.readuntil(b"\n\n")
    await asyncio.sleep(0.3)
    num_calls = len(server.model.calls)
    await asyncio.sleep(0.3)
    assert len(server.model.calls) == num_calls < 50


async def test_a_client_that_reads_nothing_is_disconnected(server):
    server.model.decode_faults.append((lambda _: True, lambda image, _: torch.rand_like(image)))
    body = json.dumps({"prompt": "x", "stream": True, "n": 10, "size": "1024x1024"}).encode()
    async with bridging(server.address, send_timeout_s=0.3) as bridge:
        reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port, limit=1_024)
        writer.write(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await reader.readuntil(b"\r\n\r\n")
        # The fake generates at once; what the client does not read waits for send_timeout_s only.
        await asyncio.sleep(3)
        num_bytes = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                num_bytes += len(data)
        writer.close()
    assert num_bytes < 30_000_000


@pytest.mark.parametrize(
    ("quality", "steps"), [("draft", 2), ("low", 2), ("medium", 4), ("hd", 6), ("max", 8)]
)
async def test_quality_is_a_share_of_the_models_steps(bridge, server, quality, steps):
    answer = await bridge.generate(quality=quality, guidance_scale=1)
    assert answer.json["usage"]["output_tokens"] == steps
    assert len(server.model.calls) == steps
    answer = await bridge.generate(quality=quality, num_inference_steps=3, seed=1)
    assert answer.json["usage"]["output_tokens"] == 3
