"""What the server and the bridge have in common as long-running processes.

Standard library only; for these two and the command, no part of what the client offers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import sys
import time
from importlib import metadata
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable
    from pathlib import Path

START_UP_ERROR: Final = 2
"""Exit code of a service that cannot start."""
_SAME_SIGNAL_S: Final = 1.0
"""Ctrl-C reaches us from the terminal and again from a supervisor: that is one request to stop."""


def version() -> str:
    """Returns the version of Latentwire."""
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
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def write_port_file(path: Path, port: int) -> None:
    """Writes a port into a file in one go: whoever waits for it must never read half of it.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(f"{port}\n")
    partial.replace(path)


def stop_signals(exit_at_once: Callable[[int], None], *, logger: logging.Logger) -> asyncio.Event:
    """Returns what is set by SIGTERM or SIGINT; to be called on the event loop.

    Args:
        exit_at_once: is called with an exit code when told to stop for the second time.
        logger: is told of that.
    """
    told_to_stop = asyncio.Event()
    first_at = 0.0

    def stop(number: int) -> None:
        nonlocal first_at
        if not told_to_stop.is_set():
            first_at = time.monotonic()
            told_to_stop.set()
        elif time.monotonic() - first_at > _SAME_SIGNAL_S:
            logger.warning("told to stop again: ending at once")
            exit_at_once(128 + number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return told_to_stop
