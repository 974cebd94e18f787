"""Whatever bytes arrive: a documented answer, and the server goes on."""

from __future__ import annotations

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.reflection import V1_SERVICE
from tests.server.serving import Serving, events_of, request, serving, told

SERVICE = pb.DESCRIPTOR.services_by_name["ImageGeneration"]
UNARY = [
    f"/{SERVICE.full_name}/{method.name}"
    for method in SERVICE.methods
    if method.name != "GenerateImage"
] + ["/grpc.health.v1.Health/Check", "/latentwire.v1.ModelAdmin/UnloadModel"]
GENERATE = f"/{SERVICE.full_name}/GenerateImage"


async def test_an_undecodable_request_is_told_so_by_every_shape_of_method(server: Serving):
    garbage = b"\xff\xff\xff"
    calls = [server.channel.unary_unary(method)(garbage) for method in UNARY[:-1]]
    calls.append(server.channel.unary_stream(GENERATE)(garbage))
    calls.append(server.channel.unary_stream("/grpc.health.v1.Health/Watch")(garbage))
    reflect = server.channel.stream_stream(f"/{V1_SERVICE}/ServerReflectionInfo")
    calls.append(reflect(iter([garbage])))
    for call in calls:
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_reflection_goes_on_after_a_question_it_cannot_answer(server: Serving):
    reflect = server.channel.stream_stream(
        f"/{V1_SERVICE}/ServerReflectionInfo",
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    answers = [answer async for answer in reflect(iter([b"", b""]))]
    assert [one.WhichOneof("message_response") for one in answers] == ["error_response"] * 2


@pytest.mark.parametrize(
    "method",
    [
        "/latentwire.v1.ImageGeneration/NoSuchMethod",
        "/latentwire.v1.ModelAdmin/LoadModel",
        "/no.such.Service/Method",
    ],
)
async def test_an_unknown_method_is_unimplemented(server: Serving, method: str):
    assert await server.channel.unary_unary(method)(b"").code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("size", [9 * 1024, 17 * 1024])
async def test_too_much_metadata_reaches_no_handler(server: Serving, size: int):
    call = server.stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=(("x-big", "x" * size),))
    code = await call.code()
    # Between its soft and its hard limit gRPC refuses at random.
    assert code in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OK}
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED or size < 16 * 1024


async def test_a_request_over_the_limit_reaches_no_handler():
    async with serving(max_request_bytes=1_000_000) as server:
        call = server.channel.unary_unary(UNARY[0])(b"x" * 2_000_000)
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_request_of_five_megabytes_is_read_and_judged(server: Serving):
    with pytest.raises(grpc.RpcError) as caught:
        await events_of(server.stub.GenerateImage(request("x" * 5_000_000)))
    assert told(caught.value).reasons == {"prompt": "TOO_LONG"}


async def test_deep_nesting_and_bad_utf8_are_undecodable(server: Serving):
    for payload in (b"\x12\x02\xff\xfe", b"\x0b" * 5_000):
        call = server.channel.unary_stream(GENERATE)(payload)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
