"""Images as server-sent events: the bytes, and what OpenAI's own client makes of them."""

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
from tests.support.client.scripted_server import Abort, accepted, numbered, progress
from tests.support.fakes import FakeSafetyChecker

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
STEP_S = 0.1
OF_ALL = {"type", "b64_json", "created_at", "size", "quality", "background", "output_format"}


def picture_in(event: dict) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(event["b64_json"], validate=True)))
    image.load()
    return image


def file_of(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def events_in(data: bytes) -> list[dict]:
    """Reads a whole stream strictly: nothing but events of two lines, and comments."""
    assert data.endswith(b"\n\n")
    events = []
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            assert "\n" not in block
            continue
        name, body = block.split("\n")
        event = json.loads(body.removeprefix("data: "))
        assert body.startswith("data: ")
        assert name == f"event: {event.get('type', 'error')}"
        events.append(event)
    return events


async def streamed(bridge, **fields: object) -> list[dict]:
    answer = await bridge.generate(stream=True, **fields)
    assert answer.status == 200, answer.data
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["x-request-id"]
    float(answer.headers["openai-processing-ms"])
    return events_in(answer.data)


async def test_without_partial_images_there_is_the_picture_alone(bridge):
    (event,) = await streamed(bridge, seed=5)
    assert set(event) == OF_ALL | {"usage", "image_index", "seed"}
    assert event["type"] == "image_generation.completed"
    assert picture_in(event).size == (64, 64)
    assert (event["size"], event["output_format"], event["seed"]) == ("64x64", "png", 5)
    plain = await bridge.generate(seed=5)
    assert event["b64_json"] == plain.json["data"][0]["b64_json"]
    assert event["usage"] == plain.json["usage"]
    assert event["usage"]["output_tokens"] == 4


@pytest.mark.parametrize("partial_images", [1, 2, 3])
@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_partial_images_are_spread_over_the_steps(
    bridge, server, partial_images, output_format
):
    # Whoever reads more slowly than steps are taken gets the newest preview only.
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
        assert set(event) == OF_ALL | {"partial_image_index", "image_index", "step"}
        assert event["output_format"] == output_format
        assert picture_in(event).format == output_format.upper()
        assert picture_in(event).size == (64, 64)


@pytest.mark.parametrize(
    ("num_steps", "expected"), [(7, [2, 4, 6]), (10, [3, 6, 9]), (15, [4, 8, 12]), (4, [1, 2, 3])]
)
async def test_partial_images_are_spread_where_steps_do_not_divide(
    bridge, server, num_steps, expected
):
    server.model.call_s = STEP_S
    *partials, _ = await streamed(bridge, partial_images=3, num_inference_steps=num_steps)
    assert [event["step"] for event in partials] == expected


async def test_partial_images_are_made_by_the_models_decoder(bridge, server):
    server.model.call_s = STEP_S
    num_decodes = server.model.num_decodes
    await streamed(bridge, partial_images=2, num_inference_steps=8)
    assert server.model.num_decodes - num_decodes == 3


async def test_partial_images_are_spread_over_the_models_own_steps_too(bridge, server):
    server.model.call_s = STEP_S
    partial, _ = await streamed(bridge, partial_images=1)
    assert partial["step"] == 2


async def test_several_pictures_have_an_event_each(bridge, server):
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


async def test_progress_comes_only_to_those_who_ask(bridge, server):
    server.model.call_s = STEP_S
    events = await streamed(bridge, progress=True, num_inference_steps=4)
    told = [event for event in events if event["type"] == "latentwire.progress"]
    # The last one gives way to the decoding's, which comes at once.
    steps = [event["step"] for event in told if event["phase"] == "denoising"]
    assert steps[:3] == [1, 2, 3]
    assert set(told[0]) == {
        "type", "phase", "step", "step_count", "fraction", "estimated_remaining_s"
    }  # fmt: skip


async def test_an_edit_has_events_of_its_own(bridge, server):
    server.model.call_s = STEP_S
    url = f"data:image/png;base64,{base64.b64encode(file_of(Image.new('RGB', (64, 64)))).decode()}"
    body = {"prompt": "x", "images": [{"image_url": url}], "num_inference_steps": 10}
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
    "wrong", [{"size": "63x64"}, {"model": "unknown"}, {"n": 99}, {"response_format": "url"}]
)
async def test_what_can_be_refused_is_refused_before_the_stream_opens(bridge, server, wrong):
    answer = await bridge.generate(stream=True, partial_images=1, **wrong)
    assert answer.status in {400, 404}
    assert answer.error["message"]
    assert server.model.calls == []


@pytest.mark.parametrize("nothing", [None, False])
async def test_no_stream_is_plain_json(bridge, nothing):
    answer = await bridge.generate(stream=nothing, partial_images=2)
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.json["data"][0]["b64_json"]


async def test_a_failure_on_the_way_is_an_event_that_clients_raise(scripted_bridge, servicer):
    info = error_details_pb2.ErrorInfo(reason="PIPELINE_ERROR", domain="latentwire.v1")
    broken = Abort(grpc.StatusCode.INTERNAL, "the pipeline failed", (info,))
    servicer.script = numbered(accepted(), progress(1, 4), broken)
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


async def test_a_withheld_image_is_told_where_it_cannot_be_taken_for_a_picture(bridge, server):
    server.model.safety_checker = FakeSafetyChecker(lambda number: number % 2 == 0)
    async with openai.AsyncOpenAI(
        base_url=f"{bridge.url}/v1", api_key="any", max_retries=0
    ) as client:
        stream = await client.images.generate(prompt="a", n=2, stream=True, partial_images=3)
        assert [event.type async for event in stream] == ["image_generation.completed"]

    plain = await bridge.generate(n=2, stream=True, seed=7)
    assert b": image 1 was withheld by a safety filter\n\n" in plain.data
    events = await streamed(bridge, n=2, progress=True, seed=8)
    told = [event for event in events if event["type"] == "latentwire.withheld"]
    assert [(event["image_index"], event["seed"], event["code"]) for event in told] == [
        (1, 9, "content_policy_violation")
    ]


async def test_what_is_done_differently_is_told_before_the_picture_and_with_it(bridge, server):
    server.model.safety_checker = FakeSafetyChecker(lambda _: False)
    asked = {"prompt": "a \n\ndata: b " * 30, "partial_images": 1, "n": 2}
    plain = await bridge.generate(stream=True, **asked)
    comments = [block for block in plain.data.split(b"\n\n") if block.startswith(b": ")]
    assert len(comments) == 2
    assert plain.data.startswith(b"\n\n".join(comments))
    told = [event["warnings"] for event in events_in(plain.data)]
    assert told == [told[0]] * 2
    assert sorted((one["param"], one["code"]) for one in told[0]) == [
        ("partial_images", "previews_withheld"),
        ("prompt", "prompt_truncated"),
    ]

    first, second, *_ = await streamed(bridge, progress=True, **asked)
    warning = {"type": "latentwire.warning"}
    assert [first, second] == [warning | one for one in told[0]]
    assert "warnings" not in (await streamed(bridge))[0]


async def test_openais_client_does_not_stumble_over_warnings(bridge):
    async with openai.AsyncOpenAI(
        base_url=f"{bridge.url}/v1", api_key="any", max_retries=0
    ) as client:
        stream = await client.images.generate(prompt="a b " * 99, stream=True)
        (event,) = [event async for event in stream]
    assert event.type == "image_generation.completed"
    assert event.warnings[0]["code"] == "prompt_truncated"


async def test_a_stream_whose_every_image_is_withheld_ends_in_an_error(bridge, server):
    server.model.safety_checker = FakeSafetyChecker(lambda _: True)
    (event,) = await streamed(bridge, n=2)
    assert event["error"]["code"] == "content_policy_violation"


async def test_silence_is_filled_with_comments(server):
    async with bridging(server.address, keep_alive_s=0.05) as bridge:
        server.model.hold()
        drawing = asyncio.create_task(bridge.generate(stream=True))
        await asyncio.sleep(0.4)
        server.model.let_go()
        answer = await drawing
    assert answer.data.count(b": still generating\n\n") >= 3
    assert len(events_in(answer.data)) == 1


async def test_leaving_in_the_middle_stops_the_drawing(bridge, server):
    server.model.call_s = 0.05
    body = {"prompt": "x", "stream": True, "progress": True, "num_inference_steps": 100}
    async with bridge.session.post(bridge.url + GENERATIONS, json=body) as response:
        await response.content.readuntil(b"\n\n")
    await asyncio.sleep(0.3)
    num_calls = len(server.model.calls)
    await asyncio.sleep(0.3)
    assert len(server.model.calls) == num_calls < 50


async def test_whoever_reads_nothing_is_cut_off(server):
    server.model.decode_faults.append((lambda _: True, lambda image, _: torch.rand_like(image)))
    body = json.dumps({"prompt": "x", "stream": True, "n": 10, "size": "1024x1024"}).encode()
    async with bridging(server.address, send_timeout_s=0.3) as bridge:
        reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port, limit=1_024)
        writer.write(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await reader.readuntil(b"\r\n\r\n")
        # The fake draws in no time; what cannot be sent waits, and then no more.
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
