"""Reads request bodies from untrusted callers: JSON objects and multipart forms, within bounds.

The sockets are read on the event loop; ``parse_object`` is pure.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NoReturn

from aiohttp import BodyPartReader, web

from latentwire_bridge.openai.errors import ApiError, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_MAX_PARTS: Final = 1_000
_BIG_BODY_BYTES: Final = 65_536
"""Parsing more than this takes milliseconds: too long for the event loop."""
_JSON_TYPES: Final = {
    type(None): "null",
    bool: "a boolean",
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
}


def is_form(request: web.Request) -> bool:
    """Whether the body is a form with files."""
    return request.content_type == "multipart/form-data"


async def read_object(
    request: web.Request, *, timeout_s: float, takes_forms: bool = False
) -> dict[str, object]:
    """Returns the JSON object in a request's body.

    Args:
        request: The request.
        timeout_s: How long the body may take to arrive.
        takes_forms: Whether the route also takes forms; changes the error message only.

    Raises:
        ApiError: The body has another type, is not a JSON object, or does not arrive in time.
    """
    _require_json(request.headers.get("Content-Type"), takes_forms=takes_forms)
    async with _time_limit(timeout_s):
        try:
            data = await request.read()
        except web.HTTPException:
            raise
        except (web.RequestPayloadError, ValueError):
            # Malformed chunks, or a body not compressed as its header claims.
            message = "the request body does not match its headers"
            raise ApiError(message, code="invalid_body") from None
    if len(data) > _BIG_BODY_BYTES:
        return await asyncio.to_thread(parse_object, data)
    return parse_object(data)


async def read_form(request: web.Request, *, timeout_s: float) -> list[tuple[str, bytes]]:
    """Returns the parts of a multipart form, by name.

    ``aiohttp.web.Request.post`` will not do: it takes a file without a name for text.

    Raises:
        ApiError: The body is not a form, or does not arrive in time.
    """
    async with _time_limit(timeout_s):
        try:
            return [part async for part in _parts(request)]
        except web.HTTPException:
            raise
        except Exception:  # Border: aiohttp's parser of hostile bytes
            message = "the request body is not a valid multipart form"
            raise ApiError(message, code="invalid_body") from None


async def _parts(request: web.Request) -> AsyncIterator[tuple[str, bytes]]:
    num_parts = 0
    async for part in await request.multipart():
        num_parts += 1
        if num_parts > _MAX_PARTS or request.content.total_bytes > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(max_size=request.client_max_size)
        if not isinstance(part, BodyPartReader) or part.name is None:
            message = "a part has no name, or has parts itself"
            raise ValueError(message)
        yield part.name, bytes(await part.read(decode=True))


@asynccontextmanager
async def _time_limit(timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        message = f"the request body did not arrive within {timeout_s:g} s"
        raise ApiError(
            message, status=HTTPStatus.REQUEST_TIMEOUT, code="request_timeout", is_final=True
        ) from None


def _require_json(content_type: str | None, *, takes_forms: bool) -> None:
    kind = (content_type or "application/json").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    # Browsers send other types without asking the server first, and `curl -d` sends a form.
    hint = "; with curl: -H 'Content-Type: application/json'"
    if takes_forms:
        hint = ", or a form with files, multipart/form-data; with curl: -F image=@photo.png"
    message = (
        f"the body must be JSON, sent with the header 'Content-Type: application/json'"
        f" (got {shown(kind)}){hint}"
    )
    raise ApiError(
        message, status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE, code="unsupported_content_type"
    )


def parse_object(data: bytes) -> dict[str, object]:
    """Returns the JSON object in ``data``.

    Raises:
        ApiError: It is not a JSON object, is nested too deeply, or names a field twice.
    """
    if not data.strip():
        _refuse('is empty; send a JSON object such as {"prompt": "a red circle"}')
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError:
        _refuse("is not UTF-8")
    except json.JSONDecodeError as error:
        _refuse(f"is not JSON: line {error.lineno}, column {error.colno}")
    except RecursionError:
        _refuse("is nested too deeply")
    except ValueError:
        # Python's own limit on the digits of an integer.
        _refuse("contains a number with too many digits")
    if not isinstance(value, dict):
        _refuse(f"must be a JSON object, not {_JSON_TYPES[type(value)]}")
    return value


def _object_without_duplicates(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            _refuse(f"has {shown(name)} twice")
        found[name] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    _refuse(f"is not JSON: {name} is not a JSON number")


def _refuse(what: str) -> NoReturn:
    message = f"the request body {what}"
    raise ApiError(message, code="invalid_json")
