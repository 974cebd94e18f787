"""``latentwire inspect``: the request that drew an image, read out of the image file."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING

from google.protobuf.json_format import MessageToJson, ParseDict, ParseError

from latentwire._channel import SERVICE
from latentwire._cli.exit_code import ExitCode
from latentwire._cli.text import fields, one_line
from latentwire._cli.usage import UsageError
from latentwire._metadata import read_description
from latentwire.v1 import image_generation_pb2 as pb

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def run(arguments: argparse.Namespace, *, server: str) -> ExitCode:
    """Prints what an image file says about itself."""
    description = load_description(arguments.file)
    if arguments.json:
        text = json.dumps(description, ensure_ascii=False) + "\n"
    elif arguments.as_grpcurl:
        text = _grpcurl_command(request_in(description, path=arguments.file), server=server)
    else:
        text = fields(_flat(description))
    sys.stdout.write(text)
    return ExitCode.OK


def load_description(path: Path) -> dict[str, object]:
    """Reads an image file's description.

    Raises:
        UsageError: There is no such file, or it holds no description.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise UsageError(msg) from None
    text = read_description(data)
    try:
        description = None if text is None else json.loads(text)
    except ValueError:
        description = None
    if not isinstance(description, dict):
        msg = f"{path}: no request in it; a PNG, JPEG or WebP file drawn by Latentwire has one"
        raise UsageError(msg)
    return description


def request_in(description: Mapping[str, object], *, path: Path) -> pb.GenerateImageRequest:
    """Returns the request that a description holds.

    Raises:
        UsageError: It holds none that this version understands.
    """
    request = description.get("request")
    try:
        if isinstance(request, dict):
            return ParseDict(request, pb.GenerateImageRequest(), ignore_unknown_fields=True)
        cause: ParseError | None = None
    except ParseError as error:
        cause = error
    msg = f"{path}: its request is none that this version understands"
    raise UsageError(msg) from cause


def _grpcurl_command(request: pb.GenerateImageRequest, *, server: str) -> str:
    body = MessageToJson(request, indent=None)
    return f"grpcurl -plaintext -d {shlex.quote(body)} {server} {SERVICE}/GenerateImage\n"


def _flat(description: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields the values with dotted names; the request's own come without a prefix."""
    for name, value in description.items():
        if isinstance(value, dict):
            yield from _flat(value, "" if name == "request" else f"{prefix}{name}.")
        else:
            yield prefix + name, one_line(value) if isinstance(value, str) else value
