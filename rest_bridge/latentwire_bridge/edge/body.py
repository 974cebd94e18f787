"""A JSON body from hostile hands: read within bounds of size and time, parsed or refused.

``parse_object`` is pure; ``read_object`` reads the socket on the event loop.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NoReturn

from aiohttp import web

from latentwire_bridge.openai.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_SHOWN_CHARACTERS: Final = 64
_BIG_BODY_BYTES: Final = 65_536
"""Parsing more than this takes milliseconds, in which the event loop serves nobody."""


async def read_object(
    request: web.Request, *, timeout_s: float, takes_forms: bool = False
) -> dict[str, object]:
    """Returns the request's JSON object.

    Args:
        request: Whose body is read.
        timeout_s: How long that may take.
        takes_forms: Whether the caller might have sent a form instead.

    Raises:
        ApiError: the body is of another type, not JSON, no object, or does not arrive in time.
    """
    _require_json(request.headers.get("Content-Type"), takes_forms=takes_forms)
    try:
        async with asyncio.timeout(timeout_s):
            data = await request.read()
    except TimeoutError:
        message = f"the request body did not arrive within {timeout_s:g} s"
        raise ApiError(
            message, status=HTTPStatus.REQUEST_TIMEOUT, code="request_timeout", is_final=True
        ) from None
    except web.HTTPException:
        raise
    except (web.RequestPayloadError, ValueError):
        # Chunks that are none, a compressed body that is none.
        message = "the request body is not what its headers say"
        raise ApiError(message, code="invalid_body") from None
    if len(data) > _BIG_BODY_BYTES:
        return await asyncio.to_thread(parse_object, data)
    return parse_object(data)


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
        f" (got {_shown(kind)}){hint}"
    )
    raise ApiError(
        message, status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE, code="unsupported_content_type"
    )


def parse_object(data: bytes) -> dict[str, object]:
    """Returns the JSON object in ``data``.

    Raises:
        ApiError: there is none, for whatever reason: syntax, depth, encoding, doubled names.
    """
    if not data.strip():
        _refuse('is empty; send a JSON object such as {"prompt": "a red circle"}')
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_object_without_doubles,
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
        _refuse("holds a number of too many digits")
    if not isinstance(value, dict):
        _refuse(f"must be a JSON object, not {_kind(value)}")
    return value


def _object_without_doubles(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            _refuse(f"names {_shown(name)} twice")
        found[name] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    _refuse(f"is not JSON: {name} is no JSON number")


def _refuse(what: str) -> NoReturn:
    message = f"the request body {what}"
    raise ApiError(message, code="invalid_json")


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case list():
            return "an array"
        case str():
            return "a string"
        case _:
            return "a number"


def _shown(text: str) -> str:
    return ascii(text[:_MAX_SHOWN_CHARACTERS])
