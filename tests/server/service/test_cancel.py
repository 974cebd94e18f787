"""Every way to stop a generation, counted in denoiser calls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from latentwire.v1 import image_generation_pb2 as pb
from tests.support.eventually import eventually
from tests.support.fakes import FakeModel
from tests.support.server.serving import Serving, error_details, events_of, kind, request, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PROMPT = "the cancelled one"


@pytest.fixture
async def held() -> AsyncIterator[Serving]:
    """A server whose device is held in its first denoiser call."""
    model = FakeModel()
    model.hold()
    async with serving(model, max_running=1) as server:
        yield server


async def state_of(server: Serving, name: str) -> int:
    answer = await server.stub.GetGeneration(pb.GetGenerationRequest(name=name))
    return answer.generation.state


async def started(server: Serving, call: grpc.aio.UnaryStreamCall) -> str:
    """Waits until the first denoiser call of a generation, and returns its name."""
    first = await anext(aiter(call))
    await eventually(lambda: server.model.calls_with(PROMPT))
    return first.generation


async def test_a_cancelled_call_is_gone_before_the_next_denoiser_call(held: Serving):
    call = held.stub.GenerateImage(request(PROMPT, num_inference_steps=50))
    name = await started(held, call)
    call.cancel()

    async def is_cancelled() -> bool:
        return await state_of(held, name) == pb.GENERATION_STATE_CANCELLED

    while not await is_cancelled():
        pass
    held.model.let_go()
    await events_of(held.stub.GenerateImage(request("the next")))
    assert len(held.model.calls_with(PROMPT)) == 1
    assert len(held.model.calls_with("the next")) == 4


async def test_cancel_generation_ends_the_stream_with_cancelled_by_request(held: Serving):
    call = held.stub.GenerateImage(request(PROMPT, num_inference_steps=50))
    name = await started(held, call)
    answer = await held.stub.CancelGeneration(pb.CancelGenerationRequest(name=name))
    assert answer.generation.name == name
    assert answer.generation.state == pb.GENERATION_STATE_CANCELLED
    with pytest.raises(grpc.RpcError) as caught:
        [response async for response in call]
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert error_details(caught.value).info.reason == "CANCELLED_BY_REQUEST"
    held.model.let_go()
    await events_of(held.stub.GenerateImage(request("the next")))
    assert len(held.model.calls_with(PROMPT)) == 1

    again = await held.stub.CancelGeneration(pb.CancelGenerationRequest(name=name))
    assert again.generation.state == pb.GENERATION_STATE_CANCELLED


@pytest.mark.parametrize("way", ["call", "rpc"])
async def test_a_generation_cancelled_while_queued_never_reaches_the_device(
    held: Serving, way: str
):
    ahead = held.stub.GenerateImage(request("ahead"))
    await anext(aiter(ahead))
    await eventually(lambda: held.model.calls)
    call = held.stub.GenerateImage(request(PROMPT))
    name = (await anext(aiter(call))).generation
    assert await state_of(held, name) == pb.GENERATION_STATE_QUEUED
    if way == "call":
        call.cancel()
    else:
        await held.stub.CancelGeneration(pb.CancelGenerationRequest(name=name))
    while await state_of(held, name) != pb.GENERATION_STATE_CANCELLED:
        pass
    held.model.let_go()
    assert kind([response async for response in ahead][-1]) == "completed"
    assert held.model.calls_with(PROMPT) == []
    assert PROMPT not in held.model.encoded_prompts


async def test_a_generation_past_its_deadline_is_absent_from_the_next_call(held: Serving):
    call = held.stub.GenerateImage(request(PROMPT, num_inference_steps=50), timeout=0.5)
    name = await started(held, call)
    with pytest.raises(grpc.RpcError) as caught:
        [response async for response in call]
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    while await state_of(held, name) != pb.GENERATION_STATE_CANCELLED:
        pass
    held.model.let_go()
    await events_of(held.stub.GenerateImage(request("the next")))
    assert len(held.model.calls_with(PROMPT)) == 1


async def test_a_deadline_that_passes_in_the_queue_costs_no_call(held: Serving):
    ahead = held.stub.GenerateImage(request("ahead"))
    await anext(aiter(ahead))
    await eventually(lambda: held.model.calls)
    with pytest.raises(grpc.RpcError) as caught:
        await events_of(held.stub.GenerateImage(request(PROMPT), timeout=0.3))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    held.model.let_go()
    assert kind([response async for response in ahead][-1]) == "completed"
    assert held.model.calls_with(PROMPT) == []


async def test_a_deadline_of_a_millisecond_costs_no_call(server: Serving):
    with pytest.raises(grpc.RpcError) as caught:
        await events_of(server.stub.GenerateImage(request(PROMPT), timeout=0.001))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await events_of(server.stub.GenerateImage(request("the next")))
    assert server.model.calls_with(PROMPT) == []


async def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    model = FakeModel(call_s=0.05)
    async with serving(model) as server:
        await events_of(server.stub.GenerateImage(request("measured", num_inference_steps=10)))
        with pytest.raises(grpc.RpcError) as caught:
            await events_of(
                server.stub.GenerateImage(request(PROMPT, num_inference_steps=150), timeout=3.0)
            )
    refused = error_details(caught.value)
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused.info.reason == "DEADLINE_TOO_SHORT"
    assert float(refused.info.metadata["needed_s"]) > 5.0
    assert model.calls_with(PROMPT) == []


async def test_a_client_whose_connection_breaks_frees_the_device(held: Serving):
    channel = grpc.aio.insecure_channel(held.address)
    call = channel.unary_stream(
        "/latentwire.v1.ImageGeneration/GenerateImage",
        request_serializer=pb.GenerateImageRequest.SerializeToString,
        response_deserializer=pb.GenerateImageResponse.FromString,
    )(request(PROMPT, num_inference_steps=50))
    name = await started(held, call)
    await channel.close()
    while await state_of(held, name) != pb.GENERATION_STATE_CANCELLED:
        pass
    held.model.let_go()
    await events_of(held.stub.GenerateImage(request("the next")))
    assert len(held.model.calls_with(PROMPT)) == 1


async def test_many_cancels_at_random_moments_leave_nothing_behind(server: Serving):
    async def one(number: int) -> None:
        call = server.stub.GenerateImage(request(f"{number}", num_inference_steps=20))
        async for response in call:
            if response.sequence > number % 7:
                call.cancel()
                break

    await asyncio.gather(*(one(number) for number in range(20)))

    async def is_idle() -> bool:
        info = await server.stub.GetServerInfo(pb.GetServerInfoRequest())
        return (info.running_count, info.queued_count) == (0, 0)

    while not await is_idle():
        pass
    assert kind((await events_of(server.stub.GenerateImage(request())))[-1]) == "completed"
