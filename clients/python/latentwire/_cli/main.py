"""Picks the command and turns what went wrong into one line and an exit status.

The one place of the client that reads the environment.
"""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import TYPE_CHECKING

from latentwire._channel import DEFAULT_SERVER
from latentwire._cli import generate, inspect, resources, serve
from latentwire._cli.arguments import build_parser
from latentwire._cli.exit_code import ExitCode, exit_code_for
from latentwire._cli.text import duration
from latentwire._cli.usage import UsageError
from latentwire._client import Client
from latentwire.errors import InternalServerError, LatentwireError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    arguments = build_parser(version=_version()).parse_args(argv)
    try:
        return _run(arguments)
    except UsageError as error:
        sys.stderr.write(f"latentwire: {error}\n")
        return ExitCode.REFUSED
    except LatentwireError as error:
        sys.stderr.write(_error_lines(error))
        return exit_code_for(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone, as `head` is. Nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


def _run(arguments: argparse.Namespace) -> ExitCode:
    match arguments.command:
        case "inspect":
            return inspect.run(arguments, server=_server(arguments))
        case "serve":
            return serve.run(arguments)
        case "generate":
            with _client(arguments) as client:
                return generate.run(arguments, client)
        case _:
            with _client(arguments) as client:
                return resources.run(arguments, client)


def _client(arguments: argparse.Namespace) -> Client:
    try:
        return Client(_server(arguments), api_key=os.environ.get("LATENTWIRE_API_KEY"))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _server(arguments: argparse.Namespace) -> str:
    server: str | None = getattr(arguments, "server", None)
    return server or os.environ.get("LATENTWIRE_SERVER") or DEFAULT_SERVER


def _error_lines(error: LatentwireError) -> str:
    lines = [f"latentwire: {error}"]
    if error.retry_after_s is not None:
        lines.append(f"try again in {duration(error.retry_after_s)}")
    if isinstance(error, InternalServerError) and error.error_id not in error.message:
        lines.append(f"the server's log says more under {error.error_id}")
    return "\n".join(lines) + "\n"


def _version() -> str:
    try:
        return metadata.version("latentwire")
    except metadata.PackageNotFoundError:
        return "(not installed)"
