"""``latentwire serve``: runs and supervises the gRPC service and the REST bridge.

They run as processes of their own and are never imported: this package is a client, which knows
them by their flags, their port files and their APIs.
"""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from latentwire._cli.exit_status import ExitCode, UsageError
from latentwire._cli.start_up import StartUpDisplay, say
from latentwire._cli.supervisor import Child
from latentwire._services.process import START_UP_ERROR, host_and_port

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine, Mapping, Sequence

_POLL_INTERVAL_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 1.0
_PROBE_TIMEOUT_S: Final = 5.0

_WELCOME: Final = """
Latentwire is ready: gRPC on {server}, REST on {bridge}. Ctrl-C stops it. Try:

  {command} generate "a red circle on a blue background" -o circle.png --server {server}

  grpcurl -plaintext -d '{{"prompt": "a red circle on a blue background"}}' \\
    {server} latentwire.v1.ImageGeneration/GenerateImage

  curl -s {bridge}/v1/images/generations -H 'content-type: application/json' \\
    -d '{{"prompt": "a red circle on a blue background", "size": "512x512"}}'

  # Python, openai==0.28.1; a newer one wants OpenAI(base_url="{bridge}/v1", api_key="...")
  import openai
  openai.api_base = "{bridge}/v1"
  openai.api_key = "random-string"
  openai.Image.create(prompt="a red circle on a blue background", n=1, size="512x512")

"""

ResultT = TypeVar("ResultT")


def run(arguments: argparse.Namespace) -> ExitCode:
    """Serves until Ctrl-C, SIGTERM or SIGHUP."""
    for package in ("latentwire_server", "latentwire_bridge"):
        if importlib.util.find_spec(package) is None:
            msg = f"{package} is not installed: pip install 'latentwire[server,bridge]'"
            raise UsageError(msg)
    with tempfile.TemporaryDirectory(prefix="latentwire-") as folder:
        return asyncio.run(Serving(arguments, folder=Path(folder)).run())


class Serving:
    """Both processes, from start to stop. Event loop only."""

    def __init__(self, arguments: argparse.Namespace, *, folder: Path) -> None:
        self._arguments = arguments
        self._server_host = _host(arguments, "LATENTWIRE_HOST")
        self._bridge_host = _host(arguments, "LATENTWIRE_BRIDGE_HOST")
        self._folder = folder
        self._ends: dict[Child, asyncio.Task[int]] = {}
        """Each child with the task that ends when it will not be started again."""
        self._stopping = asyncio.Event()

    async def run(self) -> ExitCode:
        """Starts both, announces when both are ready, and waits for the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        try:
            await self._serve()
        finally:
            ended = {end.result() for end in self._ends.values() if end.done()}
            # They finish their work; a second Ctrl-C kills them.
            for child in self._ends:
                child.terminate()
            await asyncio.wait(self._ends.values())
        if self._stopping.is_set():
            return ExitCode.OK
        return ExitCode.REFUSED if START_UP_ERROR in ended else ExitCode.SERVER_FAILED

    async def _serve(self) -> None:
        async with StartUpDisplay() as display:
            addresses = await self._start_both(display)
        if addresses is not None:
            server, bridge = addresses
            say(_WELCOME.format(server=server, bridge=f"http://{bridge}", command=_command()))
            await self._unless_ended(asyncio.Event().wait())

    async def _start_both(self, display: StartUpDisplay) -> tuple[str, str] | None:
        """Returns the addresses of both once they are ready; None if one of them ended before."""
        display.begin("Starting the server", usually="5 to 20 s")
        given = self._arguments
        flags = {"--host": given.host, "--port": given.port, "--model": given.model}
        server = self._start("server", flags, further=given.server_flags)
        server_port = await self._port_of(server)
        if server_port is None:
            return None
        server_address = host_and_port(self._server_host, server_port)
        flags = {"--server": server_address, "--host": given.host, "--port": given.bridge_port}
        bridge = self._start("bridge", flags)
        following = asyncio.create_task(display.follow_load(server_address))
        try:
            bridge_port = await self._port_of(bridge)
            if bridge_port is None:
                return None
            if not await self._unless_ended(_bridge_is_ready(self._bridge_host, bridge_port)):
                return None
        finally:
            following.cancel()
        server.mark_ready()
        bridge.mark_ready()
        return server_address, host_and_port(self._bridge_host, bridge_port)

    def _start(self, name: str, flags: Mapping[str, object], further: Sequence[str] = ()) -> Child:
        argv = [sys.executable, "-m", f"latentwire_{name}"]
        for flag, value in {**flags, "--config": self._arguments.config}.items():
            if value is not None:
                argv += [flag, str(value)]
        argv += [*further, "--port-file", str(self._folder / name)]
        child = Child(name, argv, log=say)
        self._ends[child] = asyncio.create_task(child.keep_running())
        return child

    async def _port_of(self, child: Child) -> int | None:
        """Returns a child's port once it listens; None if a child or the command ends before."""
        port = await self._unless_ended(_read_port(self._folder / child.name))
        if port is not None:
            # A restarted child must listen where it was, even if the system picked the port.
            child.argv = (*child.argv, "--port", str(port))
        return port

    async def _unless_ended(self, work: Coroutine[None, None, ResultT]) -> ResultT | None:
        """Returns the result of ``work``; None if a child or the command ends before."""
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait(
                {working, stopping, *self._ends.values()}, return_when=asyncio.FIRST_COMPLETED
            )
            return working.result() if working.done() else None
        finally:
            working.cancel()
            stopping.cancel()

    def _on_signal(self) -> None:
        for child in self._ends:
            if self._stopping.is_set():
                child.kill()
            else:
                child.terminate()
        self._stopping.set()


async def _read_port(port_file: Path) -> int:
    """Returns the port in a file, once the file exists."""
    while not await asyncio.to_thread(port_file.exists):  # noqa: ASYNC110 - written by another process
        await asyncio.sleep(_POLL_INTERVAL_S)
    return int(await asyncio.to_thread(port_file.read_text))


async def _bridge_is_ready(host: str, port: int) -> bool:
    """Returns True once the bridge is ready, which implies that the server is."""
    pause_s = _POLL_INTERVAL_S
    while not await asyncio.to_thread(_probe, host, port):
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    return True


def _probe(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _host(arguments: argparse.Namespace, variable: str) -> str:
    """Returns the host under which this machine reaches a child."""
    host: str = arguments.host or os.environ.get(variable) or "127.0.0.1"
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here


def _command() -> str:
    """Returns how to call this command from the current folder."""
    if shutil.which("latentwire") is not None:
        return "latentwire"
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return f"{os.path.relpath(sys.executable)} -m latentwire"
    return os.path.relpath(program)
