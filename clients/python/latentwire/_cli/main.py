"""Runs the chosen command and turns an error into one line and an exit status.

Commands other than ``serve`` get their part of the environment from here.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from latentwire._channel import DEFAULT_SERVER
from latentwire._cli import generate, inspect, resources, serve
from latentwire._cli.arguments import build_parser
from latentwire._cli.exit_status import ExitCode, UsageError, error_lines, exit_code_for
from latentwire._client import Client
from latentwire._services.process import version
from latentwire.errors import LatentwireError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    arguments = build_parser(version=version()).parse_args(argv)
    try:
        return _run(arguments)
    except UsageError as error:
        sys.stderr.write(f"latentwire: {error}\n")
        return ExitCode.REFUSED
    except LatentwireError as error:
        sys.stderr.write(error_lines(error))
        return exit_code_for(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone, as after `| head`. Python would fail again at exit.
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
