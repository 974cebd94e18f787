from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

import latentwire
from latentwire._cli import main
from tests.support.client.both_clients import InThreads, OnLoop
from tests.support.client.generating import generate
from tests.support.client.scripted_server import ScriptedServicer, serving
from tests.support.time_limits import scaled


@pytest.fixture
def servicer():
    return ScriptedServicer()


@pytest.fixture
def address(servicer):
    with serving(servicer) as address:
        yield address


@pytest.fixture(params=["threads", "asyncio"])
async def client(request, address):
    if request.param == "threads":
        with latentwire.Client(address, api_key="secret") as client:
            yield InThreads(client)
    else:
        async with latentwire.AsyncClient(address, api_key="secret") as client:
            yield OnLoop(client)


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def environment(address):
    return {
        **os.environ,
        "LATENTWIRE_SERVER": address,
        "LATENTWIRE_API_KEY": "secret",
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        # A proxy that does not exist: calls to this machine must not use it.
        "http_proxy": "http://127.0.0.1:1",
        "no_proxy": "",
    }


@pytest.fixture
def cli(address, monkeypatch, tmp_path, servicer, capsys):
    """Runs a command inside this process, which saves half a second each time."""
    monkeypatch.setenv("LATENTWIRE_SERVER", address)
    monkeypatch.setenv("LATENTWIRE_API_KEY", "secret")
    monkeypatch.chdir(tmp_path)
    servicer.script = generate

    def run(*arguments: str) -> Result:
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return Result(status, printed.out, printed.err)

    return run


@pytest.fixture
def process(environment, tmp_path, servicer):
    """Runs a command as users do."""
    servicer.script = generate

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "latentwire", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            timeout=scaled(50),
            check=False,
        )

    return run
