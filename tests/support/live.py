"""The product as `make serve` runs it, and the commands that the pages print for it."""

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
LIVE_MARKS = [pytest.mark.slow, pytest.mark.timeout(400)]
"""For the modules that use it."""
SERVER = "localhost:50051"
BRIDGE = "localhost:9225"
GRPCURL_PAGE = ROOT / "clients/grpcurl/README.md"
README = ROOT / "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A running product."""

    server: str
    bridge: str
    output: Path
    """A file with everything that it prints."""
    process: subprocess.Popen[bytes]

    def localized(self, text: str) -> str:
        """Replaces the default addresses in a text by those of this product."""
        return text.replace(SERVER, self.server).replace(BRIDGE, self.bridge)


@contextmanager
def serving(
    folder: Path, *, program: Path | None = None, flags: Sequence[str] = (), **settings: str
) -> Iterator[Live]:
    """Runs ``make serve`` with the embedded model; its end by Ctrl-C must leave no process.

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
    output = folder / "output"
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
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, *ports],
            cwd=folder,
            env=environment,
            stderr=file,
            stdout=file,
            start_new_session=True,
        )
        live = Live(
            server=f"127.0.0.1:{port}",
            bridge=f"127.0.0.1:{bridge_port}",
            output=output,
            process=process,
        )
        try:
            _wait_until_ready(live)
            yield live
        finally:
            # The services have sessions of their own.
            is_running = process.poll() is None
            started = psutil.Process(process.pid).children(recursive=True) if is_running else []
            # To the whole process group, as a terminal sends it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            try:
                _wait_until_gone(process, started)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert "Traceback" not in output.read_text()


def _wait_until_ready(live: Live) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while "Latentwire is ready" not in live.output.read_text():
        assert live.process.poll() is None, live.output.read_text()
        assert time.monotonic() < give_up_at, live.output.read_text()
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
    """Translates a `grpcurl` command to `buf curl`."""
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
    url = f"http://{live.localized(rest[0])}"
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
    """Runs a printed `grpcurl` command through `buf curl`; returns its output."""
    command = as_buf_curl(grpcurl, live, reflection=reflection)
    return run(*command, timeout_s=CALL_TIMEOUT_S)


def curl(printed: list[str], live: Live, *, folder: Path) -> str:
    """Runs a printed `curl` command in a folder; returns its output."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("there is no curl on this machine")
    words = [live.localized(word) for word in printed]
    return run(program, "--noproxy", "*", *words, cwd=folder, timeout_s=CALL_TIMEOUT_S)


def messages(output: str) -> list[dict[str, object]]:
    """Parses a sequence of JSON objects."""
    decoder = json.JSONDecoder()
    found = []
    text = output.strip()
    while text:
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:].lstrip()
    return found
