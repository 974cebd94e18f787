"""Requests that are sent again under their ``request_id``: joined or replayed, never doubled."""

from __future__ import annotations

import asyncio
import uuid

import grpc
import pytest

from latentwire import AsyncClient
from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.service import recordings
from tests.support.eventually import eventually
from tests.support.fakes import FakeModel
from tests.support.server.serving import (
    Serving,
    error_details,
    events_of,
    images_of,
    kind,
    request,
    serving,
)

CONTINUE = pb.DISCONNECT_POLICY_CONTINUE
PROMPT = "generated once"
STEPS = 4


@pytest.fixture
def one_id() -> str:
    return str(uuid.uuid4())


def repeatable(request_id: str, **fields: object) -> pb.GenerateImageRequest:
    return request(PROMPT, request_id=request_id, guidance_scale=1, **fields)


async def answer(server: Serving, sent: pb.GenerateImageRequest) -> list[pb.GenerateImageResponse]:
    return await events_of(server.stub.GenerateImage(sent))


async def refusal(server: Serving, sent: pb.GenerateImageRequest, **options: object) -> object:
    with pytest.raises(grpc.RpcError) as caught:
        await events_of(server.stub.GenerateImage(sent, **options))
    return error_details(caught.value)


async def wait_until_idle(server: Serving) -> None:
    while True:
        info = await server.stub.GetServerInfo(pb.GetServerInfoRequest())
        if (info.running_count, info.queued_count) == (0, 0):
            return


async def begun(server: Serving, sent: pb.GenerateImageRequest) -> grpc.aio.UnaryStreamCall:
    """Returns the call once the device is held in its first step."""
    server.model.hold()
    call = server.stub.GenerateImage(sent)
    assert kind(await anext(aiter(call))) == "accepted"
    await eventually(lambda: server.model.calls)
    return call


async def test_a_repeat_joins_the_running_generation(server: Serving, one_id: str):
    first = await begun(server, repeatable(one_id))
    joined = asyncio.create_task(answer(server, repeatable(one_id)))
    server.model.let_go()
    rest = [response async for response in first]
    whole = await joined

    assert whole[1:] == rest
    assert kind(whole[0]) == "accepted"
    assert [one.sequence for one in whole] == list(range(1, len(whole) + 1))
    assert len(server.model.calls) == STEPS


async def test_simultaneous_repeats_are_generated_once(server: Serving, one_id: str):
    answers = await asyncio.gather(*[answer(server, repeatable(one_id)) for _ in range(5)])
    assert len({one[0].generation for one in answers}) == 1
    assert len({images_of(one)[0] for one in answers}) == 1
    assert len(server.model.calls) == STEPS


async def test_a_repeat_after_the_end_gets_the_same_events(server: Serving, one_id: str):
    first = await answer(server, repeatable(one_id, num_images=2))
    # A UUID is the same in capitals.
    for same_id in (one_id, one_id.upper()):
        again = await answer(server, repeatable(same_id, num_images=2))
        assert again == first
    assert len(images_of(again)) == 2


@pytest.mark.parametrize("change", [{"seed": 5}, {"disconnect_policy": CONTINUE}, {"user": "x"}])
async def test_another_request_under_the_same_id_is_refused(
    server: Serving, one_id: str, change: dict[str, object]
):
    await answer(server, repeatable(one_id))
    refused = await refusal(server, repeatable(one_id, **change))
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS
    assert refused.info.reason == "REQUEST_ID_REUSED"
    assert len(server.model.calls) == STEPS


async def test_callers_cannot_join_each_others_generations(one_id: str):
    async with serving(api_keys="ann,bob") as server:
        ann, bob = ([("authorization", f"Bearer {key}")] for key in ("ann", "bob"))
        sent = repeatable(one_id)
        first = await events_of(server.stub.GenerateImage(sent, metadata=ann))
        other = await events_of(server.stub.GenerateImage(sent, metadata=bob))
        assert first[0].generation != other[0].generation
        sent.resume_after_sequence = 1
        await events_of(server.stub.GenerateImage(sent, metadata=ann))
        unknown = repeatable(str(uuid.uuid4()), resume_after_sequence=1)
        assert (await refusal(server, unknown, metadata=ann)).code is grpc.StatusCode.NOT_FOUND


async def test_reading_resumes_after_a_sequence_number(server: Serving, one_id: str):
    whole = await answer(server, repeatable(one_id))
    for after in (1, 3, len(whole)):
        rest = await answer(server, repeatable(one_id, resume_after_sequence=after))
        assert rest == whole[after:]
    for after in (-1, len(whole) + 1):
        refused = await refusal(server, repeatable(one_id, resume_after_sequence=after))
        assert refused.reasons == {"resume_after_sequence": "OUT_OF_RANGE"}
    unknown = await refusal(server, repeatable(str(uuid.uuid4()), resume_after_sequence=1))
    assert unknown.info.reason == "GENERATION_NOT_FOUND"


@pytest.mark.parametrize(
    ("sent", "reasons"),
    [
        (request(request_id="mine"), {"request_id": "NOT_A_UUID"}),
        (request(disconnect_policy=CONTINUE), {"disconnect_policy": "NEEDS_REQUEST_ID"}),
        (request(resume_after_sequence=1), {"resume_after_sequence": "NEEDS_REQUEST_ID"}),
        (
            request(request_id=str(uuid.uuid4()), resume_after_sequence=1, validate_only=True),
            {"resume_after_sequence": "UNSUPPORTED_FIELD"},
        ),
    ],
)
async def test_inconsistent_fields_are_refused_by_name(
    server: Serving, sent: pb.GenerateImageRequest, reasons: dict[str, str]
):
    refused = await refusal(server, sent)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reasons == reasons


async def test_every_repeat_of_an_invalid_request_is_refused(server: Serving, one_id: str):
    for _ in range(2):
        refused = await refusal(server, repeatable(one_id, width=77))
        assert refused.reasons == {"width": "NOT_A_MULTIPLE"}
    assert kind((await answer(server, repeatable(one_id)))[-1]) == "completed"


async def test_by_default_a_generation_ends_when_its_last_reader_leaves(
    server: Serving, one_id: str
):
    calls = [await begun(server, repeatable(one_id)), server.stub.GenerateImage(repeatable(one_id))]
    await anext(aiter(calls[1]))
    calls[0].cancel()
    server.model.release()
    await eventually(lambda: len(server.model.calls) == 2)

    calls[1].cancel()
    await wait_until_idle(server)
    server.model.let_go()
    assert kind((await answer(server, repeatable(one_id)))[-1]) == "completed"
    assert len(server.model.calls) == 2 + STEPS


async def test_a_continuing_generation_can_be_read_after_a_disconnect(server: Serving, one_id: str):
    sent = repeatable(one_id, disconnect_policy=CONTINUE)
    call = await begun(server, sent)
    call.cancel()
    server.model.let_go()
    await wait_until_idle(server)
    assert len(server.model.calls) == STEPS

    found = await answer(server, sent)
    assert kind(found[-1]) == "completed"
    assert len(server.model.calls) == STEPS


async def test_a_deadline_ends_its_call_but_not_a_continuing_generation(
    server: Serving, one_id: str
):
    sent = repeatable(one_id, disconnect_policy=CONTINUE)
    server.model.hold()
    with pytest.raises(grpc.RpcError) as caught:
        await events_of(server.stub.GenerateImage(sent, timeout=0.3))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    again = asyncio.create_task(answer(server, sent))
    server.model.let_go()
    assert kind((await again)[-1]) == "completed"
    assert len(server.model.calls) == STEPS


async def test_a_continuing_generation_without_readers_ends_after_a_while(one_id: str):
    async with serving(replay_ttl_s=0.2) as server:
        call = await begun(server, repeatable(one_id, disconnect_policy=CONTINUE))
        call.cancel()
        await wait_until_idle(server)
        assert len(server.model.calls) == 1


async def test_images_are_kept_for_a_while_and_then_generated_again(one_id: str):
    async with serving(replay_ttl_s=0.2) as server:
        await answer(server, repeatable(one_id))
        await eventually(lambda: not server.app._service._recordings._by_key)
        await answer(server, repeatable(one_id))
        assert len(server.model.calls) == 2 * STEPS


async def test_the_oldest_images_are_dropped_when_there_are_too_many():
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    async with serving(replay_max_bytes=2_500) as server:
        for one in (first, second, second):
            responses = await answer(server, repeatable(one))
        assert 1_250 < sum(response.ByteSize() for response in responses) < 2_500
        assert len(server.model.calls) == 2 * STEPS
        await answer(server, repeatable(first))
        assert len(server.model.calls) == 3 * STEPS


async def test_a_failed_generation_is_tried_again(one_id: str):
    model = FakeModel()
    model.decode_faults.append((lambda call: call.number == 1, lambda image, *_: image / 0))
    async with serving(model) as server:
        assert (await refusal(server, repeatable(one_id))).info.reason == "NON_FINITE_OUTPUT"
        assert kind((await answer(server, repeatable(one_id)))[-1]) == "completed"


async def test_every_reader_of_a_cancelled_generation_gets_its_error(server: Serving, one_id: str):
    call = await begun(server, repeatable(one_id))
    joined = asyncio.create_task(refusal(server, repeatable(one_id)))
    listed = await server.stub.ListGenerations(pb.ListGenerationsRequest())
    await server.stub.CancelGeneration(pb.CancelGenerationRequest(name=listed.generations[0].name))
    with pytest.raises(grpc.RpcError) as caught:
        [response async for response in call]
    assert error_details(caught.value).info.reason == "CANCELLED_BY_REQUEST"
    server.model.let_go()
    await joined


async def test_old_previews_are_dropped_and_keep_their_sequence_numbers(
    server: Serving, one_id: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recordings, "MAX_PREVIEW_BYTES", 1_000)
    events = pb.Events(preview_interval_steps=1)
    sent = repeatable(one_id, num_inference_steps=12, events=events)
    await answer(server, sent)
    responses = await answer(server, sent)
    kinds = [kind(response) for response in responses]
    assert None in kinds
    assert "preview" in kinds
    assert [one.sequence for one in responses] == list(range(1, len(responses) + 1))
    async with AsyncClient(server.address) as client:
        (image,) = await client.generate(sent)
    assert [image.data] == images_of(responses)


async def test_a_generation_without_readers_does_not_delay_the_shutdown(one_id: str):
    async with serving() as server:
        call = await begun(server, repeatable(one_id, disconnect_policy=CONTINUE))
        call.cancel()
    assert len(server.model.calls) <= STEPS
