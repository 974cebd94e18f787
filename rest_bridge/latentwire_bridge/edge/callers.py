"""Reads a caller's headers: the key, how long they wait, and the id of a retry. Pure."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from latentwire_bridge.openai.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire import AsyncClient

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
MAX_KEY_CHARACTERS: Final = 4_096
"""gRPC drops calls whose metadata exceeds 8 KiB."""
TIMEOUT_HEADERS: Final = ("x-stainless-read-timeout", "x-stainless-timeout")
"""How many seconds OpenAI's clients wait: Python's, and Node.js's in whole seconds."""
_SHARE_OF_TIMEOUT: Final = 0.95
"""The rest is for the response: a client that times out first retries, and pays twice."""
_SHARE_OF_SILENCE: Final = 1 / 3
"""Leaves room for a comment that is late."""
_CONFUSED_BY_EVENT_NAMES: Final = frozenset(
    {"AsyncOpenAI/Python 1.97.0", "AsyncOpenAI/Python 1.97.1"}
)
"""Clients that misread named events; they read the data alone, which has the type too."""


def client_of(headers: Mapping[str, str], *, client: AsyncClient) -> AsyncClient:
    """Returns a client that calls the server with the caller's key.

    Raises:
        ApiError: The key cannot be valid.
    """
    key = _key(headers)
    if not key:
        return client
    if len(key) > MAX_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
        message = "the API key must be printable ASCII of at most 4,096 characters"
        raise ApiError(message, status=HTTPStatus.UNAUTHORIZED, code="invalid_api_key")
    return client.with_api_key(key)


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """Returns the id by which the server recognises a retry; None without ``Idempotency-Key``.

    The key may be any text, and each caller has keys of their own.

    Raises:
        ApiError: The key is empty.
    """
    idempotency_key = headers.get(IDEMPOTENCY_KEY)
    if idempotency_key is None:
        return None
    if not idempotency_key.strip():
        message = f"'{IDEMPOTENCY_KEY}': must not be empty; send any text, such as a UUID"
        raise ApiError(message, param=IDEMPOTENCY_KEY, code="invalid_value")
    named = json.dumps([_key(headers), idempotency_key]).encode()
    return str(uuid.UUID(bytes=hashlib.sha256(named).digest()[:16], version=5))


def timeout_s(headers: Mapping[str, str], *, most_s: float) -> float:
    """Returns how long a generation may take, given how long the caller waits."""
    waits_s = (_seconds(headers.get(name, "")) for name in TIMEOUT_HEADERS)
    return min(most_s, *(_SHARE_OF_TIMEOUT * wait_s for wait_s in waits_s))


def _seconds(header: str) -> float:
    """Returns a header's positive number of seconds, or infinity."""
    try:
        seconds = float(header)
    except ValueError:
        return math.inf
    return seconds if seconds > 0 else math.inf


def keep_alive_s(headers: Mapping[str, str], *, most_s: float) -> float:
    """Returns how long a stream may be silent: clients wait that long for each chunk."""
    return min(most_s, timeout_s(headers, most_s=math.inf) * _SHARE_OF_SILENCE)


def _key(headers: Mapping[str, str]) -> str:
    """Returns the caller's API key; empty if there is none."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def reads_event_names(headers: Mapping[str, str]) -> bool:
    """Whether the caller's client understands ``event:`` lines."""
    return headers.get("User-Agent") not in _CONFUSED_BY_EVENT_NAMES
