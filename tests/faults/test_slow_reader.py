"""A client that stops reading delays nobody else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import torch

from latentwire.v1 import image_generation_pb2 as pb
from tests.support.eventually import eventually
from tests.support.fakes import FakeModel
from tests.support.server.serving import Serving, events_of, images_of, kind, request, serving
from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SMALL_WINDOW = (
    ("grpc.http2.lookahead_bytes", 65_535),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.max_frame_size", 16_384),
)


def noise(image: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.rand_like(image)


def noisy(**fields: object) -> pb.GenerateImageRequest:
    """Returns a request of ten images of some 800 kB, more than a connection buffers."""
    return request(width=512, height=512, num_inference_steps=1, num_images=10, **fields)


async def has_ended(server: Serving, name: str) -> bool:
    answer = await server.stub.GetGeneration(pb.GetGenerationRequest(name=name))
    return answer.generation.HasField("end_time")


async def until_ended(server: Serving, name: str) -> None:
    while not await has_ended(server, name):
        pass


async def stalled(server: Serving, channel: grpc.aio.Channel) -> tuple[AsyncIterator, str]:
    """Starts a generation and reads only its first event."""
    call = channel.unary_stream(
        "/latentwire.v1.ImageGeneration/GenerateImage",
        request_serializer=pb.GenerateImageRequest.SerializeToString,
        response_deserializer=pb.GenerateImageResponse.FromString,
    )(noisy())
    stream = aiter(call)
    return stream, (await anext(stream)).generation


async def test_a_reader_that_pauses_delays_nobody_and_gets_every_event_in_order():
    model = FakeModel()
    model.decode_faults.append((lambda _: True, noise))
    async with (
        serving(model) as server,
        grpc.aio.insecure_channel(server.address, options=SMALL_WINDOW) as channel,
    ):
        stream, name = await stalled(server, channel)
        # The device finishes the unread generation, and others are served meanwhile.
        await until_ended(server, name)
        others = await events_of(server.stub.GenerateImage(request("another")))
        assert kind(others[-1]) == "completed"

        late = [response async for response in stream]
    assert kind(late[-1]) == "completed"
    assert len(images_of(late)) == 10
    assert [one.sequence for one in late] == list(range(2, len(late) + 2))


async def test_a_reader_that_never_resumes_is_disconnected():
    model = FakeModel()
    model.decode_faults.append((lambda _: True, noise))
    async with serving(model, send_timeout_s=0.3) as server:
        async with grpc.aio.insecure_channel(server.address, options=SMALL_WINDOW) as channel:
            _stream, name = await stalled(server, channel)
            await until_ended(server, name)
            await asyncio.wait_for(server.app.wait_until_delivered(), scaled(10))
        others = await events_of(server.stub.GenerateImage(request("another")))
        assert kind(others[-1]) == "completed"
    await eventually(lambda: model.num_decodes >= 1)
