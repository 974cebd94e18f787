"""Both clients against a scripted server: events, images, resources, closing."""

from __future__ import annotations

import asyncio
import inspect
import threading

import grpc
import pytest
from google.rpc import error_details_pb2

import latentwire
from latentwire.v1 import image_generation_pb2 as pb
from tests.support.client.scripted_server import (
    GENERATION,
    Abort,
    Hang,
    accepted,
    chunk,
    completed,
    image,
    numbered,
    progress,
)
from tests.support.eventually import eventually

IMAGE_DATA = bytes(range(256)) * 40


async def test_generate_returns_every_image(client, servicer):
    servicer.script = numbered(
        accepted(seeds=(7, 8)),
        progress(1, 1),
        image(IMAGE_DATA),
        image(IMAGE_DATA[::-1], index=1),
        completed(2),
    )
    first, second = await client.generate("a red circle", num_images=2)
    assert (first.data, first.index, first.seed) == (IMAGE_DATA, 0, 7)
    assert (second.data, second.index, second.seed) == (IMAGE_DATA[::-1], 1, 8)
    assert first.finish_reason == "completed"
    assert first.media_type == "image/png"
    assert servicer.requests[0].num_images == 2


async def test_events_are_typed_and_in_order(client, servicer):
    queued = pb.GenerateImageResponse(queued=pb.Queued(ahead_count=3))
    queued.queued.estimated_wait.FromMilliseconds(1500)
    preview = pb.GenerateImageResponse(preview=pb.Preview(step=1, data=b"jpeg"))
    loading = pb.GenerateImageResponse(
        model_loading=pb.ModelLoading(model="models/a", total_bytes=9)
    )
    warning = pb.Warning(field="prompt", reason="PROMPT_TRUNCATED", message="'x' was dropped")
    servicer.script = numbered(
        accepted(prompt="p", seed=7, warnings=[warning]),
        queued,
        loading,
        progress(1, 2),
        preview,
        image(IMAGE_DATA),
        completed(),
    )
    events = [event async for event in client.events("p")]
    kinds = [type(event).__name__ for event in events]
    assert kinds == [
        "Accepted",
        "Queued",
        "ModelLoading",
        "Progress",
        "Preview",
        "Image",
        "Completed",
    ]
    assert events[0].generation == GENERATION
    assert events[0].effective_request.prompt == "p"
    assert events[0].warnings[0].reason == "PROMPT_TRUNCATED"
    assert events[1].estimated_wait_s == 1.5
    assert events[2].total_bytes == 9
    assert (events[3].phase, events[3].fraction) == ("denoising", 0.5)
    assert events[3].estimated_remaining_s is None
    assert events[4].data == b"jpeg"
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5, 6, 7]


async def test_chunks_are_assembled_at_the_default_message_limit(client, servicer):
    data = IMAGE_DATA * 900  # 9.2 MB, more than two messages can hold
    servicer.script = numbered(
        accepted(),
        image(data, first=4_000_000),
        chunk(data[4_000_000:8_000_000], offset=4_000_000),
        chunk(data[8_000_000:], offset=8_000_000),
        completed(),
    )
    (received,) = await client.generate("p")
    assert received.data == data


@pytest.mark.parametrize(
    ("events", "complaint"),
    [
        ([image(IMAGE_DATA, sha256=b"x" * 32), completed()], "SHA-256"),
        ([image(IMAGE_DATA, size_bytes=5), completed()], "instead of 5"),
        ([image(IMAGE_DATA, first=100), completed()], "stopped after 100"),
        ([image(IMAGE_DATA, first=100), chunk(b"x", offset=99)], "byte 99"),
        ([image(IMAGE_DATA, first=100), chunk(b"x", offset=100, index=1)], "without its image"),
        ([chunk(b"x", offset=0)], "without its image"),
        ([image(IMAGE_DATA)], "without a completed"),
        ([image(IMAGE_DATA), completed(2)], "2 were sent"),
    ],
)
async def test_a_stream_that_violates_the_contract_is_an_error(client, servicer, events, complaint):
    servicer.script = numbered(accepted(), *events)
    with pytest.raises(latentwire.CorruptStreamError, match=complaint):
        await client.generate("p")


async def test_a_gap_in_the_sequence_is_an_error(client, servicer):
    script = numbered(accepted(), progress(1, 2), image(IMAGE_DATA), completed())
    servicer.script = [script[0], script[2], script[3]]
    with pytest.raises(latentwire.CorruptStreamError, match="event 2 is missing"):
        await client.generate("p")


async def test_an_event_of_an_unknown_kind_is_skipped(client, servicer):
    servicer.script = numbered(
        accepted(), pb.GenerateImageResponse(), image(IMAGE_DATA), completed()
    )
    assert len(await client.generate("p")) == 1


async def test_a_filtered_image_has_no_data(client, servicer):
    filtered = image(b"", finish_reason=pb.FINISH_REASON_FILTERED, sha256=b"")
    servicer.script = numbered(accepted(), filtered, completed())
    (received,) = await client.generate("p")
    assert (received.finish_reason, received.data) == ("filtered", b"")
    assert received.is_filtered


async def test_a_filtered_image_can_be_neither_saved_nor_opened(client, servicer, tmp_path):
    filtered = image(b"", finish_reason=pb.FINISH_REASON_FILTERED, sha256=b"")
    servicer.script = numbered(accepted(), filtered, completed())
    (received,) = await client.generate("p")
    for use in (lambda: received.save(tmp_path / "p.png"), received.pil):
        with pytest.raises(latentwire.ImageFilteredError, match="image 0 was withheld"):
            use()
    assert list(tmp_path.iterdir()) == []


async def test_a_validation_ends_after_accepted(client, servicer):
    servicer.script = numbered(accepted())
    events = [event async for event in client.events("p", validate_only=True)]
    assert len(events) == 1


async def test_leaving_the_with_block_cancels_on_the_server(client, servicer):
    servicer.script = numbered(accepted(), Hang())
    async with client.events("p") as events:
        async for event in events:
            assert isinstance(event, latentwire.Accepted)
            break
    await eventually(servicer.call_ended.is_set)
    assert [event async for event in events] == []


async def test_closing_from_another_task_ends_the_iteration(client, servicer):
    servicer.script = numbered(accepted(), Hang())
    stream = client.events("p")
    await anext(stream)
    reading = asyncio.create_task(_rest(stream))
    await asyncio.sleep(0)
    await stream.aclose()
    assert await reading == []
    await eventually(servicer.call_ended.is_set)


async def _rest(stream):
    return [event async for event in stream]


async def test_cancelling_the_task_cancels_on_the_server(address, servicer):
    servicer.script = numbered(accepted(), Hang())
    async with latentwire.AsyncClient(address) as client:
        stream = client.stream("p")
        await anext(stream)
        reading = asyncio.create_task(_rest(stream))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await eventually(servicer.call_ended.is_set)


async def test_the_api_key_is_sent_with_every_call(client, servicer):
    servicer.script = numbered(accepted(), image(IMAGE_DATA), completed())
    await client.generate("p")
    await client.models()
    assert [sent["authorization"] for sent in servicer.metadata] == ["Bearer secret"] * 3


async def test_another_key_is_sent_over_the_same_connection(client, servicer):
    await client.sibling("other").server_info()
    await client.sibling(None).server_info()
    await client.server_info()
    assert [sent.get("authorization") for sent in servicer.metadata] == [
        "Bearer other",
        None,
        "Bearer secret",
    ]


async def test_a_model_is_loaded_and_unloaded(client):
    reports = []
    model = await client.load_model("b", on_progress=lambda *progress: reports.append(progress))
    assert (model.name, model.state) == ("models/b", "ready")
    assert reports == [(0, 9), (5, 9), (9, 9)]
    assert (await client.load_model("b")).name == "models/b"
    assert (await client.unload_model("b")).state == "unloaded"


async def test_a_load_that_ends_without_the_model_is_an_error(client):
    with pytest.raises(latentwire.CorruptStreamError):
        await client.load_model("lost")


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        ("FAILED_PRECONDITION", "MODEL_FAILED", latentwire.UnavailableError),
        ("FAILED_PRECONDITION", "MODEL_IN_USE", latentwire.UnavailableError),
        ("PERMISSION_DENIED", "ADMIN_KEY_NEEDED", latentwire.AuthenticationError),
    ],
)
async def test_an_unavailable_model_has_its_exception(client, servicer, code, reason, expected):
    info = error_details_pb2.ErrorInfo(reason=reason)
    servicer.failure = Abort(grpc.StatusCode[code], "no", (info,))
    with pytest.raises(expected) as caught:
        await client.load_model("b")
    assert caught.value.reason == reason
    with pytest.raises(expected):
        await client.unload_model("b")


async def test_models_of_all_pages_are_listed(client):
    models = await client.models()
    assert [model.name for model in models] == ["models/a", "models/b"]
    assert models[0].is_default
    assert models[0].state == "ready"
    assert models[0].schedulers[0].sigmas == ("default", "karras")
    assert models[0].memory_bytes == 3 << 20


async def test_resources_are_typed(client, servicer):
    assert (await client.model("b")).display_name == "B"
    assert (await client.server_info()).version == "1.2.3"
    assert (await client.generation("g9")).name == "generations/g9"
    (generation,) = await client.generations()
    assert (generation.state, generation.end_time) == ("running", None)
    assert (await client.cancel(GENERATION)).state == "cancelled"
    assert servicer.cancelled_names == [GENERATION]


async def test_wait_ready_returns_once_the_server_serves(client, servicer):
    servicer.health = Abort(grpc.StatusCode.UNAVAILABLE, "starting")
    waiting = asyncio.create_task(client.wait_ready(20))
    await asyncio.sleep(0)
    assert not waiting.done()
    servicer.health = b"\x08\x01"
    await waiting


async def test_wait_ready_raises_the_reason_of_its_time_out(client, servicer):
    servicer.health = b"\x08\x02"
    with pytest.raises(latentwire.UnavailableError, match="still loading"):
        await client.wait_ready(0.1)
    servicer.health = Abort(grpc.StatusCode.NOT_FOUND, "no such model")
    with pytest.raises(latentwire.NotFoundError):
        await client.wait_ready(0.1, model="b")


async def test_dropping_a_sync_stream_cancels_on_the_server(address, servicer):
    servicer.script = numbered(accepted(), Hang())
    with latentwire.Client(address) as client:
        stream = client.stream("p")
        await asyncio.to_thread(next, stream)
        del stream
        await eventually(servicer.call_ended.is_set)


def test_both_clients_have_the_same_methods():
    def signatures(client_type):
        return {
            name: inspect.signature(method).parameters.keys()
            for name, method in vars(client_type).items()
            if not name.startswith("_") and name not in {"close", "aclose"}
        }

    assert signatures(latentwire.Client) == signatures(latentwire.AsyncClient)


def test_one_client_serves_several_threads(address, servicer):
    servicer.script = numbered(accepted(), image(IMAGE_DATA), completed())
    results: list[int] = []
    with latentwire.Client(address) as client:
        threads = [
            threading.Thread(target=lambda: results.append(len(client.generate("p"))))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [1] * 4


@pytest.mark.parametrize("loras", [{"cat": 1.0, "style": -0.5}, ["cat", ("style", -0.5)]])
async def test_loras_are_sent_by_id_with_their_scales(client, servicer, loras):
    servicer.script = numbered(accepted(), image(IMAGE_DATA), completed())
    await client.generate("p", loras=loras)
    (request,) = servicer.requests
    sent = [(one.id, one.scale if one.HasField("scale") else 1.0) for one in request.loras]
    assert sent == [("cat", 1.0), ("style", -0.5)]


@pytest.mark.parametrize("loras", ["cat", [1], [("cat", "x")], 3])
async def test_invalid_loras_are_refused(client, loras):
    with pytest.raises(TypeError, match="loras"):
        await client.generate("p", loras=loras)
