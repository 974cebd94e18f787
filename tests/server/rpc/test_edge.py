"""Any bytes get a documented answer, and the server keeps running."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.rpc.reflection import V1_SERVICE
from latentwire_server.service.generations import GenerationService
from tests.support.server.serving import Serving, error_details, events_of, request, serving

SERVICE = pb.DESCRIPTOR.services_by_name["ImageGeneration"]
UNARY = [
    f"/{SERVICE.full_name}/{method.name}"
    for method in SERVICE.methods
    if method.name != "GenerateImage"
] + ["/grpc.health.v1.Health/Check", "/latentwire.v1.ModelAdmin/UnloadModel"]
GENERATE = f"/{SERVICE.full_name}/GenerateImage"


async def test_every_kind_of_method_refuses_an_undecodable_request(server: Serving):
    garbage = b"\xff\xff\xff"
    calls = [server.channel.unary_unary(method)(garbage) for method in UNARY[:-1]]
    calls.append(server.channel.unary_stream(GENERATE)(garbage))
    calls.append(server.channel.unary_stream("/grpc.health.v1.Health/Watch")(garbage))
    reflect = server.channel.stream_stream(f"/{V1_SERVICE}/ServerReflectionInfo")
    calls.append(reflect(iter([garbage])))
    for call in calls:
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_reflection_continues_after_a_request_it_cannot_answer(server: Serving):
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
        "/latentwire.v1.ModelAdmin/NoSuchMethod",
        "/no.such.Service/Method",
    ],
)
async def test_an_unknown_method_is_unimplemented(server: Serving, method: str):
    assert await server.channel.unary_unary(method)(b"").code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> list[pb.GetServerInfoRequest]:
    """The requests that reach the handler of GetServerInfo."""
    reached: list[pb.GetServerInfoRequest] = []
    handle = GenerationService.get_server_info

    def noted(self, message):
        reached.append(message)
        return handle(self, message)

    monkeypatch.setattr(GenerationService, "get_server_info", noted)
    return reached


@pytest.mark.parametrize(
    ("size", "allowed"),
    [
        (7 * 1024, {grpc.StatusCode.OK}),
        # Between its soft and its hard limit gRPC refuses at random.
        (9 * 1024, {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}),
        (17 * 1024, {grpc.StatusCode.RESOURCE_EXHAUSTED}),
    ],
)
async def test_too_much_metadata_reaches_no_handler(
    server: Serving, handled: list[object], size: int, allowed: set[grpc.StatusCode]
):
    call = server.stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=(("x-big", "x" * size),))
    code = await call.code()
    assert code in allowed
    assert len(handled) == (code is grpc.StatusCode.OK)
    assert await server.stub.GetServerInfo(pb.GetServerInfoRequest())


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
async def test_a_call_of_another_content_type_generates_nothing(server: Serving, content_type: str):
    # gRPC's core hides the content type, and treats a body without framing as empty.
    body = b'{"prompt": "a red circle"}'
    answer = await _call_by_hand(server.address, content_type=content_type, body=body)
    assert b"grpc-status\x013" in answer  # INVALID_ARGUMENT: there is no prompt
    assert server.model.calls == []
    assert (await events_of(server.stub.GenerateImage(request())))[-1].HasField("completed")


async def _call_by_hand(address: str, *, content_type: str, body: bytes) -> bytes:
    """Calls GenerateImage over a bare HTTP/2 connection (RFC 9113); returns what comes back."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": GENERATE,
        ":authority": address,
        "te": "trailers",
        "content-type": content_type,
    }
    # Each literal, neither indexed nor Huffman-coded (RFC 7541, 6.2.2).
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))
    writer.write(_frame(1, 4, 1, block) + _frame(0, 1, 1, body))
    answer = b""
    while True:
        head = await reader.readexactly(9)
        length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
        answer += await reader.readexactly(length)
        if kind == 3 or (kind == 1 and flags & 1):  # RST_STREAM, or HEADERS that end the stream
            break
    writer.close()
    await writer.wait_closed()
    return answer


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


async def test_a_request_over_the_limit_reaches_no_handler():
    async with serving(max_request_bytes=1_000_000) as server:
        call = server.channel.unary_unary(UNARY[0])(b"x" * 2_000_000)
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_request_of_five_megabytes_is_read_and_validated(server: Serving):
    with pytest.raises(grpc.RpcError) as caught:
        await events_of(server.stub.GenerateImage(request("x" * 5_000_000)))
    assert error_details(caught.value).reasons == {"prompt": "TOO_LONG"}


async def test_deep_nesting_and_bad_utf8_are_undecodable(server: Serving):
    for payload in (b"\x12\x02\xff\xfe", b"\x0b" * 5_000):
        call = server.channel.unary_stream(GENERATE)(payload)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
