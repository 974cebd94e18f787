"""The real bridge in the event loop of the test."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from latentwire_bridge.app import running
from latentwire_bridge.settings import Settings
from tests.support.bridge.described import assert_described
from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ENVELOPE = {"message", "type", "param", "code"}
LEAKS = (" at 0x", "Traceback", "<class", "site-packages", "pydantic", "aiohttp", "Python/")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: Any
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's envelope, which must be complete."""
        assert self.status >= 400, self.data
        assert self.headers["Content-Type"].startswith("application/json")
        assert set(self.json) == {"error"}
        assert set(self.json["error"]) == ENVELOPE
        assert isinstance(self.json["error"]["message"], str)
        return self.json["error"]


@dataclass(frozen=True, kw_only=True)
class Bridge:
    url: str
    session: aiohttp.ClientSession

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def send(self, method: str, path: str, **options: Any) -> Answer:
        async with self.session.request(method, self.url + path, **options) as response:
            answer = Answer(
                status=response.status, headers=response.headers, data=await response.read()
            )
        assert_described(method, path, answer)
        return answer

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.send("GET", path, **options)

    async def generate(self, path: str = "/v1/images/generations", **fields: Any) -> Answer:
        return await self.send("POST", path, json={"prompt": "a red circle", **fields})

    async def generate_as(self, key: str) -> Answer:
        headers = {"Authorization": f"Bearer {key}"}
        return await self.send(
            "POST", "/v1/images/generations", json={"prompt": "a red circle"}, headers=headers
        )

    async def send_raw(self, data: bytes) -> Answer:
        """Sends bytes as they are and reads one response."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            status_line, *lines = head.decode().strip().split("\r\n")
            headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
            body = await reader.readexactly(int(headers["Content-Length"]))
        finally:
            writer.close()
        return Answer(status=int(status_line.split()[1]), headers=headers, data=body)


@asynccontextmanager
async def bridging(server: str, **settings: object) -> AsyncIterator[Bridge]:
    """Runs a bridge in front of the server at that address."""
    flags = {"port": 0, "server": server, "grace_s": 0, **settings}
    loaded = await asyncio.to_thread(Settings.load, flags)
    async with (
        running(loaded) as url,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=scaled(30))) as session,
    ):
        yield Bridge(url=url, session=session)


def assert_clean(answer: Answer) -> None:
    """Checks that a response leaks no internals and has the headers that clients read."""
    text = answer.data.decode()
    assert not any(leak in text for leak in LEAKS), text
    assert answer.headers["Server"] == "latentwire"
    assert answer.headers["x-request-id"] == answer.headers["request-id"]
    assert float(answer.headers["openai-processing-ms"]) >= 0
    assert answer.headers["openai-version"] == "2020-10-01"
