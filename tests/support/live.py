"""The product as `make serve` runs it, on ports of its own, and the commands that pages print."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.time_limits import scaled
from tests.support.tooling import BUF, ROOT, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_TIMEOUT_S = scaled(240)
CALL_TIMEOUT_S = 120
SERVER = "localhost:50051"
BRIDGE = "localhost:9225"


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A running product."""

    server: str
    bridge: str
    said: Path
    """What it printed."""
    process: subprocess.Popen[bytes]

    def here(self, text: str) -> str:
        """Returns printed text with the addresses of this product instead of the usual ones."""
        return text.replace(SERVER, self.server).replace(BRIDGE, self.bridge)


@contextmanager
def serving(
    folder: Path, *, program: Path | None = None, flags: Sequence[str] = (), **settings: str
) -> Iterator[Live]:
    """Runs ``make serve`` with the embedded model, then Ctrl-C, which must leave no process.

    Args:
        folder: The working directory.
        program: An installed ``latentwire`` to run instead of ``make``.
        flags: Further flags of the server.
        settings: Environment variables.
    """
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, bridge_port = one.getsockname()[1], other.getsockname()[1]
    said = folder / "said"
    command = [sys.executable, "-m", "latentwire", "serve"]
    ports = ["--port", str(port), "--bridge-port", str(bridge_port)]
    if flags:
        ports += ["--", *flags]
    environment = {**os.environ, **settings}
    if program is not None:
        environment.pop("PYTHONPATH", None)
        command = [str(program), "serve"]
    elif Path(sys.prefix) == ROOT / ".venv":  # elsewhere make would set up another environment
        command = ["make", "--directory", str(ROOT), "serve"]
        ports = [f"SERVE_ARGS={' '.join(ports)}"]
    with said.open("wb") as output:
        process = subprocess.Popen(
            [*command, *ports],
            cwd=folder,
            env=environment,
            stderr=output,
            stdout=output,
            start_new_session=True,
        )
        live = Live(
            server=f"127.0.0.1:{port}",
            bridge=f"127.0.0.1:{bridge_port}",
            said=said,
            process=process,
        )
        try:
            _wait_until_ready(live)
            yield live
        finally:
            # The services have sessions of their own.
            is_running = process.poll() is None
            started = psutil.Process(process.pid).children(recursive=True) if is_running else []
            # To all of them, as a terminal does it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            try:
                _wait_until_gone(process, started)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert "Traceback" not in said.read_text()


def _wait_until_ready(live: Live) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while "Latentwire is ready" not in live.said.read_text():
        assert live.process.poll() is None, live.said.read_text()
        assert time.monotonic() < give_up_at, live.said.read_text()
        time.sleep(0.1)


def _wait_until_gone(process: subprocess.Popen[bytes], started: list[psutil.Process]) -> None:
    process.wait(timeout=scaled(30))
    _, alive = psutil.wait_procs(started, timeout=scaled(30))
    for child in alive:
        child.kill()
    assert alive == [], "Ctrl-C leaves processes behind"


def blocks(page: Path, language: str) -> list[str]:
    """Returns the fenced blocks of a page in one language."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return fence.findall(page.read_text())


def commands(text: str, program: str) -> list[list[str]]:
    """Returns the arguments of every command of a program in shell text, without its pipeline."""
    found = []
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="|\n")
    lexer.whitespace = " \t"
    lexer.whitespace_split = True
    arguments: list[str] = []
    for token in [*lexer, "\n"]:
        if set(token) <= {"|", "\n"}:
            if arguments and Path(arguments[0]).name == program:
                found.append(arguments[1:])
            arguments = []
        else:
            arguments.append(token)
    return found


def as_buf_curl(grpcurl: list[str], live: Live, *, reflection: str) -> list[object]:
    """Returns the `buf curl` command that asks what a `grpcurl` command asks."""
    curl: list[object] = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    curl += ["--reflect-protocol", reflection]
    words = iter(grpcurl)
    rest = []
    for word in words:
        match word:
            case "-plaintext":
                pass
            case "-d":
                curl += ["--data", next(words)]
            case "-max-time":
                curl += ["--timeout", f"{next(words)}s"]
            case _:
                assert not word.startswith("-"), f"no translation for {word}"
                rest.append(word)
    url = f"http://{live.here(rest[0])}"
    match rest[1:]:
        case ["list"]:
            return [*curl, "--list-services", url]
        case ["list", _]:
            return [*curl, "--list-methods", url]
        case [method]:
            return [*curl, f"{url}/{method}"]
        case _:
            message = f"no translation for {shlex.join(grpcurl)}"
            raise AssertionError(message)


def call(grpcurl: list[str], live: Live, *, reflection: str = "grpc-v1") -> str:
    """Runs a printed `grpcurl` command through `buf curl`; returns what it says."""
    command = as_buf_curl(grpcurl, live, reflection=reflection)
    return run(*command, timeout_s=CALL_TIMEOUT_S)


def curl(printed: list[str], live: Live, *, folder: Path) -> str:
    """Runs a printed `curl` command in a folder; returns what it says."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("there is no curl on this machine")
    words = [live.here(word) for word in printed]
    return run(program, "--noproxy", "*", *words, cwd=folder, timeout_s=CALL_TIMEOUT_S)


def messages(output: str) -> list[dict[str, object]]:
    """Returns the JSON objects that follow each other in a text."""
    decoder = json.JSONDecoder()
    found = []
    text = output.strip()
    while text:
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:].lstrip()
    return found


GRPCURL_PAGE = ROOT / "clients/grpcurl/README.md"
README = ROOT / "README.md"
