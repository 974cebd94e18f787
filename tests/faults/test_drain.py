"""Being told to stop, in every state: who is told what, what finishes, how it ends."""

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
from tests.support.server.process import ServerProcess, server_process
from tests.support.server.serving import error_details, kind, request, serving
from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SLOW = {"FAKE_CALL_S": "0.2"}


def begun(
    server: ServerProcess, *, steps: int, until: str
) -> grpc.CallIterator[pb.GenerateImageResponse]:
    call = server.stub.GenerateImage(request(num_inference_steps=steps), timeout=scaled(60))
    for response in call:
        if kind(response) == until and (until != "progress" or response.progress.step):
            return call
    pytest.fail("it ended too early")


def test_idle_it_ends_at_once_even_with_somebody_watching(tmp_path: Path):
    with server_process(tmp_path) as server:
        watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        told_at = server.signal()
        assert server.exit_code() == 0
        assert time.monotonic() - told_at < scaled(5)
        assert next(watch).status == NOT_SERVING
        assert "stopped" in server.log


def test_running_ones_finish_queued_ones_are_told_and_new_ones_are_refused(tmp_path: Path):
    with server_process(tmp_path, "--max-running", "1", environment=SLOW) as server:
        running = begun(server, steps=15, until="progress")
        queued = begun(server, steps=15, until="queued")
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


async def test_what_does_not_finish_within_the_grace_is_told_so():
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


def test_told_twice_it_ends_at_once(tmp_path: Path):
    number = signal.SIGINT
    with server_process(tmp_path, environment=SLOW) as server:
        call = begun(server, steps=150, until="progress")
        told_at = server.signal(number)
        eventually_sync(lambda: server.health() == NOT_SERVING)
        # Two signals within a second are one wish: a terminal and a supervisor both pass it on.
        eventually_sync(lambda: time.monotonic() - told_at > 1.2)
        told_again_at = server.signal(number)
        assert server.exit_code(timeout_s=5) == 128 + number
        assert time.monotonic() - told_again_at < scaled(2)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_while_the_model_loads_it_ends_at_once(tmp_path: Path):
    with server_process(tmp_path, environment={"FAKE_LOAD_S": "60"}, waits=False) as server:
        assert server.health() == NOT_SERVING
        told_at = server.signal()
        assert server.exit_code() == 0
        assert time.monotonic() - told_at < scaled(5)


def test_a_broken_device_ends_every_stream_and_the_process(tmp_path: Path):
    flags = ("--max-rows", "8")  # Told, so that no call is made before the first request.
    with server_process(tmp_path, *flags, environment={"FAKE_BREAKS_AT": "3"}) as server:

        def outcome(_: int) -> grpc.StatusCode:
            with pytest.raises(grpc.RpcError) as caught:
                list(server.stub.GenerateImage(request(num_inference_steps=50), timeout=scaled(30)))
            return caught.value.code()

        with ThreadPoolExecutor(3) as pool:
            assert set(pool.map(outcome, range(3))) == {grpc.StatusCode.UNAVAILABLE}
        assert server.exit_code() == 70


def test_a_device_that_breaks_while_it_warms_up_ends_the_process(tmp_path: Path):
    environment = {"FAKE_BREAKS_AT": "1"}
    with server_process(tmp_path, environment=environment, waits=False) as server:
        assert server.exit_code() == 70
        assert "device failed model=fake error_id=" in server.log
