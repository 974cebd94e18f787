"""Malformed HTTP: every answer is in OpenAI's envelope, and the bridge keeps serving."""

from __future__ import annotations

import asyncio

import pytest

from latentwire_bridge.edge.edge import canonical_path
from tests.support.bridge.bridging import assert_clean, bridging

PATH = "/v1/images/generations"


def request_of(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


RAW = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no method": b" / HTTP/1.1\r\n\r\n",
    "unknown method": request_of("BREW / HTTP/1.1", "Host: a"),
    "long line": request_of("GET /" + "a" * 20_000 + " HTTP/1.1", "Host: a"),
    "long header": request_of("GET / HTTP/1.1", "Host: a", "X: " + "a" * 20_000),
    "many headers": request_of("GET / HTTP/1.1", "Host: a", *[f"X{i}: a" for i in range(500)]),
    "bad header": request_of("GET / HTTP/1.1", "Host: a", "no colon"),
    "two lengths": request_of(
        f"POST {PATH} HTTP/1.1", "Host: a", "Content-Length: 3", "Content-Length: 4", body=b"{}  "
    ),
    "length is a word": request_of(f"POST {PATH} HTTP/1.1", "Host: a", "Content-Length: x"),
    "length and chunks": request_of(
        f"POST {PATH} HTTP/1.1", "Host: a", "Content-Length: 3", "Transfer-Encoding: chunked"
    ),
    "chunk is none": request_of(
        f"POST {PATH} HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n\r\n"
    ),
    "expects a miracle": request_of(f"POST {PATH} HTTP/1.1", "Host: a", "Expect: miracle"),
    "asterisk": request_of("OPTIONS * HTTP/1.1", "Host: a"),
    "whole URL": request_of("GET http://a/v1/nothing HTTP/1.1", "Host: a"),
    "no host": request_of("GET /nothing HTTP/1.0"),
    "host is markup": request_of("GET /healthz HTTP/1.1", 'Host: "><script>'),
    "path is percent": request_of("GET /v1/models/%ff%00%zz HTTP/1.1", "Host: a"),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW)
async def test_malformed_http_is_refused_in_the_envelope(server, name):
    async with bridging(server.address, allowed_hosts="*") as bridge:
        answer = await bridge.send_raw(RAW[name])

        assert 400 <= answer.status < 500, answer.data
        assert answer.error["type"] == "invalid_request_error"
        assert_clean(answer)
        assert (await bridge.get("/healthz")).status == 200


async def test_an_unfinished_body_is_refused_after_a_time_out(server):
    half = request_of(f"POST {PATH} HTTP/1.1", "Host: localhost", "Content-Length: 99", body=b"{")
    async with bridging(server.address, body_timeout_s=0.2) as bridge:
        answer = await bridge.send_raw(half)

        assert answer.status == 408
        assert answer.error["code"] == "request_timeout"
        assert answer.headers["x-should-retry"] == "false"


async def test_idle_and_unfinished_connections_do_not_block_the_bridge(bridge):
    opened = [await asyncio.open_connection("127.0.0.1", bridge.port) for _ in range(200)]
    try:
        for _, writer in opened[::2]:
            writer.write(b"POST /v1/images/generations HTTP/1.1\r\nHost: loc")

        assert (await bridge.get("/healthz")).status == 200
        assert (await bridge.generate()).status == 200
    finally:
        for _, writer in opened:
            writer.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v2/images/generations", 404),
        ("POST", "/v1/images", 404),
        ("GET", "/v1/images/generations", 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/v1/images/generations", 405),
        ("PUT", "/healthz", 405),
    ],
)
async def test_unknown_paths_and_methods_are_refused_in_the_envelope(bridge, method, path, status):
    answer = await bridge.send(method, path)

    assert answer.status == status
    assert answer.error["type"] == "invalid_request_error"
    assert_clean(answer)
    if status == 405:
        assert answer.headers["Allow"]


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [("mine-42", True), ("a" * 129, False), ("with space", False), ("naïve", False)],
)
async def test_a_valid_request_id_is_kept(bridge, sent, is_kept):
    answer = await bridge.get("/healthz", headers={"x-request-id": sent})

    assert (answer.headers["x-request-id"] == sent) is is_kept
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        ("/v1/images/generations", "/images/generations"),
        ("//v1///image//generations//", "/images/generations"),
        ("/v1/v1/models", "/v1/models"),
        ("/models/a%2Fb", "/models/a%2Fb"),
        ("/files/image", "/files/image"),
        ("", "/"),
    ],
)
def test_paths_have_a_canonical_form(path, canonical):
    assert canonical_path(path) == canonical
