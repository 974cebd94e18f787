"""Runs a server in its own process: free port, log, signals, exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentwire.v1 import image_generation_pb2_grpc as rpc
from tests.support.eventually import eventually_sync
from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[3]
COMMAND = (sys.executable, "-m", "tests.support.server.serve")
# The import of torch and diffusers takes some 5 s, but was seen to take 100 s on a busy machine.
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 30.0
PROCESS_MARKS = [pytest.mark.faults, pytest.mark.timeout(START_TIMEOUT_S + 60)]
"""For the modules that use it."""


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    process: subprocess.Popen[str]
    channel: grpc.Channel
    log_file: Path

    @property
    def stub(self) -> rpc.ImageGenerationStub:
        return rpc.ImageGenerationStub(self.channel)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def health(self) -> int | None:
        stub = health_pb2_grpc.HealthStub(self.channel)
        try:
            return stub.Check(health_pb2.HealthCheckRequest(), timeout=scaled(5)).status
        except grpc.RpcError:
            return None

    def wait_until_serving(self) -> None:
        serving = health_pb2.HealthCheckResponse.SERVING
        eventually_sync(lambda: self.health() == serving, timeout_s=START_TIMEOUT_S)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Sends a signal and returns the time."""
        self.process.send_signal(number)
        return time.monotonic()

    def exit_code(self, *, timeout_s: float = STOP_TIMEOUT_S) -> int:
        return self.process.wait(scaled(timeout_s))


@contextmanager
def server_process(
    folder: Path, *flags: str, environment: dict[str, str] | None = None, waits: bool = True
) -> Iterator[ServerProcess]:
    log_file, port_file = folder / "log", folder / "port"
    port_file.unlink(missing_ok=True)
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, "--port", "0", "--port-file", str(port_file), *flags],
            stderr=log,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
    try:
        eventually_sync(
            lambda: port_file.exists() or process.poll() is not None, timeout_s=START_TIMEOUT_S
        )
        assert process.poll() is None, log_file.read_text()
        with grpc.insecure_channel(f"127.0.0.1:{port_file.read_text().strip()}") as channel:
            running = ServerProcess(process=process, channel=channel, log_file=log_file)
            if waits:
                running.wait_until_serving()
            yield running
    finally:
        process.kill()
        process.wait()
