"""Shutdown by a signal in every state: errors of callers, finished generations, exit codes."""

from __future__ import annotations

import asyncio
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentwire.v1 import image_generation_pb2 as pb
from tests.support.eventually import eventually, eventually_sync
from tests.support.fakes import FakeModel
from tests.support.server.process import PROCESS_MARKS, ServerProcess, server_process
from tests.support.server.serving import error_details, kind, request, serving
from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = PROCESS_MARKS

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SLOW = {"FAKE_CALL_S": "0.2"}


def started(
    server: ServerProcess, *, steps: int, until: str
) -> grpc.CallIterator[pb.GenerateImageResponse]:
    call = server.stub.GenerateImage(request(num_inference_steps=steps), timeout=scaled(60))
    for response in call:
        if kind(response) == until and (until != "progress" or response.progress.step):
            return call
    pytest.fail(f"the stream ended before its first {until} event")


def test_an_idle_server_stops_at_once_even_with_a_health_watcher(tmp_path: Path):
    with server_process(tmp_path) as server:
        watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        signalled_at = server.signal()
        assert server.exit_code() == 0
        assert time.monotonic() - signalled_at < scaled(5)
        assert next(watch).status == NOT_SERVING
        assert "stopped" in server.log


def test_running_generations_finish_while_queued_and_new_ones_are_refused(tmp_path: Path):
    with server_process(tmp_path, "--max-running", "1", environment=SLOW) as server:
        running = started(server, steps=15, until="progress")
        queued = started(server, steps=15, until="queued")
        server.signal()
        with pytest.raises(grpc.RpcError) as caught:
            list(queued)
        ended = error_details(caught.value)
        assert (ended.code, ended.info.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert ended.retry_after_s > 0

        assert server.health() == NOT_SERVING
        info = server.stub.GetServerInfo(pb.GetServerInfoRequest())
        assert info.draining
        with pytest.raises(grpc.RpcError) as caught:
            list(server.stub.GenerateImage(request("new")))
        refused = error_details(caught.value)
        assert (refused.code, refused.info.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert refused.retry_after_s > 0

        assert kind(list(running)[-1]) == "completed"
        assert server.exit_code() == 0


async def test_a_generation_that_outlasts_the_grace_period_fails_as_draining():
    model = FakeModel()
    model.hold()
    async with serving(model) as server:
        stream = aiter(server.stub.GenerateImage(request()))
        await anext(stream)
        await eventually(lambda: model.calls)
        stopping = asyncio.create_task(server.app.stop(grace_s=0.2))
        with pytest.raises(grpc.RpcError) as caught:
            [response async for response in stream]
        assert error_details(caught.value).info.reason == "DRAINING"
        model.let_go()
        await stopping


def test_a_second_signal_stops_the_server_at_once(tmp_path: Path):
    number = signal.SIGINT
    with server_process(tmp_path, environment=SLOW) as server:
        call = started(server, steps=150, until="progress")
        signalled_at = server.signal(number)
        eventually_sync(lambda: server.health() == NOT_SERVING)
        # Signals within a second count as one: a terminal and a supervisor may both send it.
        eventually_sync(lambda: time.monotonic() - signalled_at > 1.2)
        signalled_again_at = server.signal(number)
        assert server.exit_code(timeout_s=5) == 128 + number
        assert time.monotonic() - signalled_again_at < scaled(2)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_server_that_loads_its_model_stops_at_once(tmp_path: Path):
    with server_process(tmp_path, environment={"FAKE_LOAD_S": "60"}, waits=False) as server:
        assert server.health() == NOT_SERVING
        signalled_at = server.signal()
        assert server.exit_code() == 0
        assert time.monotonic() - signalled_at < scaled(5)


def test_a_broken_device_ends_every_stream_and_the_process(tmp_path: Path):
    flags = ("--max-rows", "8")  # Explicit: a measurement would use up calls of the device.
    with server_process(tmp_path, *flags, environment={"FAKE_BREAKS_AT": "3"}) as server:

        def outcome(_: int) -> grpc.StatusCode:
            with pytest.raises(grpc.RpcError) as caught:
                list(server.stub.GenerateImage(request(num_inference_steps=50), timeout=scaled(30)))
            return caught.value.code()

        with ThreadPoolExecutor(3) as pool:
            assert set(pool.map(outcome, range(3))) == {grpc.StatusCode.UNAVAILABLE}
        assert server.exit_code() == 70


def test_a_device_that_breaks_during_warm_up_ends_the_process(tmp_path: Path):
    environment = {"FAKE_BREAKS_AT": "1"}
    with server_process(tmp_path, environment=environment, waits=False) as server:
        assert server.exit_code() == 70
        assert "device failed model=fake error_id=" in server.log
