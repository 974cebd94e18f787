"""Disconnects, restarts of the server, probes, start-up and shutdown."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from latentwire._services.settings import SettingsError
from latentwire_bridge.app import running
from latentwire_bridge.settings import Settings
from tests.support.bridge.bridging import bridging
from tests.support.client.scripted_server import (
    ScriptedServicer,
    accepted,
    completed,
    image,
    numbered,
)
from tests.support.client.scripted_server import serving as serving_script
from tests.support.eventually import eventually
from tests.support.server.serving import serving
from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def test_a_caller_who_leaves_has_nothing_drawn_any_more(bridge, server):
    server.model.hold()
    leaving = asyncio.create_task(bridge.generate(prompt="unwanted"))
    await eventually(lambda: len(server.model.calls) == 1)

    leaving.cancel()
    await eventually(lambda: server.app._engine.status().running_count == 0)
    server.model.let_go()

    assert (await bridge.generate(prompt="wanted")).status == 200
    assert len(server.model.calls_with("unwanted")) == 1
    assert len(server.model.calls_with("wanted")) == 4


async def test_a_caller_who_leaves_while_queued_is_never_drawn(server):
    async with serving(max_running=1) as small, bridging(small.address) as bridge:
        small.model.hold()
        running = asyncio.create_task(bridge.generate(prompt="first"))
        await eventually(lambda: len(small.model.calls) == 1)
        leaving = asyncio.create_task(bridge.generate(prompt="unwanted"))
        queued = small.app._engine.status
        await eventually(lambda: queued().queued_count == 1)

        leaving.cancel()
        await eventually(lambda: queued().queued_count == 0)
        small.model.let_go()

        assert (await running).status == 200
        assert small.model.calls_with("unwanted") == []


async def test_a_full_queue_is_told_with_when_to_come_again():
    async with (
        serving(max_running=1, max_queued=1) as small,
        bridging(small.address) as bridge,
    ):
        small.model.hold()
        calls = [asyncio.create_task(bridge.generate()) for _ in range(2)]
        status = small.app._engine.status
        await eventually(lambda: status().running_count + status().queued_count == 2)

        refused = await bridge.generate()

        assert refused.status == 429
        assert refused.error["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        small.model.let_go()
        assert [answer.status for answer in await asyncio.gather(*calls)] == [200, 200]


async def test_probes_are_answered_and_ask_the_server_once_a_second(scripted_bridge, servicer):
    num_asked = 0

    def count(request: bytes, context: object) -> bytes:
        nonlocal num_asked
        num_asked += 1
        return b"\x08\x01"

    servicer.check_health = count
    answers = await asyncio.gather(*[scripted_bridge.get("/readyz") for _ in range(20)])

    assert {answer.status for answer in answers} == {200}
    assert answers[0].json == {"status": "ready"}
    assert num_asked <= 2
    assert (await scripted_bridge.get("/healthz")).json == {"status": "ok"}


async def test_probes_are_not_logged_but_a_change_of_readiness_is(caplog):
    caplog.set_level(logging.INFO, logger="latentwire_bridge")
    async with serving(loads=False) as loading, bridging(loading.address) as bridge:
        for _ in range(3):
            assert (await bridge.get("/readyz")).status == 503
        await loading.app.load()
        await eventually_status(bridge, "/readyz", 200)
        loading.app._health.stop()
        await eventually_status(bridge, "/readyz", 503)

    said = [record for record in caplog.records if record.name.startswith("latentwire_bridge.")]
    assert [record.getMessage() for record in said if "readyz" in record.getMessage()] == []
    assert [
        (record.levelname, record.getMessage()) for record in said if "ready" in record.getMessage()
    ] == [
        ("INFO", "server is ready"),
        ("WARNING", "server is not ready reason=not ready after 0.5 s: still loading"),
    ]


async def test_a_server_that_still_loads_is_not_ready_and_healthy_is_the_bridge_only():
    async with serving(loads=False) as loading, bridging(loading.address) as bridge:
        answer = await bridge.get("/readyz")

        assert answer.status == 503
        assert answer.error["code"] == "not_ready"
        assert (await bridge.get("/healthz")).status == 200
        assert (await bridge.generate()).status == 503

        await loading.app.load()
        await eventually_status(bridge, "/readyz", 200)
        assert (await bridge.generate()).status == 200


async def eventually_status(bridge, path: str, status: int) -> None:
    async with asyncio.timeout(scaled(20)):
        while (await bridge.get(path)).status != status:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)


async def test_503_while_the_server_is_down_and_service_within_a_second_of_its_return():
    servicer = ScriptedServicer()
    servicer.script = numbered(accepted(), image(b"image"), completed())
    with serving_script(servicer) as address:
        pass
    async with bridging(address) as bridge:
        assert (await bridge.generate()).status == 503
        with serving_script(servicer, address=address):
            started = asyncio.get_running_loop().time()
            await eventually_status(bridge, "/v1/models", 200)
            assert asyncio.get_running_loop().time() - started < scaled(5)
            assert (await bridge.generate()).status == 200
        assert (await bridge.generate()).status == 503
        assert (await bridge.get("/healthz")).status == 200


@asynccontextmanager
async def started(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs a bridge as a process of its own, which does not outlive the test."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "latentwire_bridge", *arguments, env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"files_folder": "/no/such/folder"}, "/no/such/folder"),
        ({"host": "203.0.113.1"}, "203.0.113.1"),
        ({"host": "no.such.host.invalid"}, "no.such.host.invalid"),
        ({"server": "https://localhost:port"}, "server="),
        ({"port_file": "/no/such/folder/port"}, "/no/such/folder/port"),
    ],
)
async def test_what_cannot_be_had_stops_the_start_in_one_line(settings, named):
    loaded = await asyncio.to_thread(Settings.load, {"port": 0, **settings})

    with pytest.raises(SettingsError, match=named) as refused:
        async with running(loaded):
            pass

    assert "\n" not in str(refused.value)


async def test_a_port_that_is_taken_is_one_line_too():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with started("--port", str(port)) as process:
            _, errors = await process.communicate()

    assert process.returncode == 2
    assert f"port={port}" in errors.decode()
    assert errors.decode().strip().count("\n") == 0


async def test_sigterm_lets_a_request_finish_and_ends_with_0(server, tmp_path):
    port_file = tmp_path / "port"
    flags = ["--port", "0", "--port-file", str(port_file), "--server", server.address]
    async with started(*flags, "--files-folder", str(tmp_path)) as process:
        await eventually(port_file.exists, timeout_s=40)
        port = int(port_file.read_text())
        server.model.hold()
        body = b'{"prompt": "a red circle", "response_format": "b64_json"}'
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await eventually(lambda: len(server.model.calls) == 1)

        process.send_signal(signal.SIGTERM)
        while b"draining" not in (line := await process.stderr.readline()):
            assert line, "the bridge ended without draining"
        await eventually_refused(port)
        server.model.let_go()

        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        assert await process.wait() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["port"]


async def eventually_refused(port: int) -> None:
    async with asyncio.timeout(scaled(20)):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                continue  # it waited to be accepted when the port was closed
            writer.close()
