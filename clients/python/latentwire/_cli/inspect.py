"""``latentwire inspect``: shows the request stored in an image file."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING

from google.protobuf.json_format import MessageToJson, ParseDict, ParseError

from latentwire._channel import SERVICE
from latentwire._cli.exit_status import ExitCode, UsageError
from latentwire._cli.formatting import fields, one_line
from latentwire._metadata import read_description
from latentwire.v1 import image_generation_pb2 as pb

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def run(arguments: argparse.Namespace, *, server: str) -> ExitCode:
    """Prints the description of an image file."""
    description = load_description(arguments.file)
    if arguments.json:
        text = json.dumps(description, ensure_ascii=False) + "\n"
    elif arguments.as_grpcurl:
        request = request_in(description, path=arguments.file)
        body = shlex.quote(MessageToJson(request, indent=None))
        text = f"grpcurl -plaintext -d {body} {server} {SERVICE}/GenerateImage\n"
    else:
        text = fields(_flat(description))
    sys.stdout.write(text)
    return ExitCode.OK


def load_description(path: Path) -> dict[str, object]:
    """Reads the description from an image file.

    Raises:
        UsageError: The file cannot be read, or has no description.
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
        msg = f"{path}: contains no request; PNG, JPEG and WebP files made by Latentwire do"
        raise UsageError(msg)
    return description


def request_in(description: Mapping[str, object], *, path: Path) -> pb.GenerateImageRequest:
    """Returns the request in a description.

    Raises:
        UsageError: It is missing, or this version does not understand it.
    """
    request = description.get("request")
    try:
        if isinstance(request, dict):
            return ParseDict(request, pb.GenerateImageRequest(), ignore_unknown_fields=True)
        cause: ParseError | None = None
    except ParseError as error:
        cause = error
    msg = f"{path}: contains a request that this version does not understand"
    raise UsageError(msg) from cause


def _flat(description: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields the values with dotted names; those of the request have no prefix."""
    for name, value in description.items():
        if isinstance(value, dict):
            yield from _flat(value, "" if name == "request" else f"{prefix}{name}.")
        else:
            yield prefix + name, one_line(value) if isinstance(value, str) else value
