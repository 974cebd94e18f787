"""What the server and the bridge share as long-running processes.

Standard library only. Not part of the client's interface.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import sys
import time
from importlib import metadata
from typing import Final, NoReturn

START_UP_ERROR: Final = 2
"""Exit code of a service that cannot start."""
_SAME_SIGNAL_S: Final = 1.0
"""Ctrl-C may arrive from the terminal and again from a supervisor, as one request to stop."""


def version() -> str:
    try:
        return metadata.version("latentwire")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def fail(program: str, message: str) -> NoReturn:
    """Ends a process that cannot start: one line on stderr, exit code 2."""
    one_line = " ".join(message.split())
    sys.stderr.write(f"{program}: {one_line}\n")
    raise SystemExit(START_UP_ERROR)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def host_and_port(host: str, port: int) -> str:
    """Returns ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def exit_at_once(code: int) -> NoReturn:
    """Ends the process, whatever is still running.

    Threads may still be inside C++: an orderly end would abort there and lose the exit code.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stop_signals(logger: logging.Logger) -> asyncio.Event:
    """Returns an event that SIGTERM or SIGINT sets; the second request to stop exits at once.

    Call it on the event loop.
    """
    stopping = asyncio.Event()
    first_at = 0.0

    def stop(number: int) -> None:
        nonlocal first_at
        if not stopping.is_set():
            first_at = time.monotonic()
            stopping.set()
        elif time.monotonic() - first_at > _SAME_SIGNAL_S:
            logger.warning("second request to stop: exiting at once")
            exit_at_once(128 + number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return stopping
