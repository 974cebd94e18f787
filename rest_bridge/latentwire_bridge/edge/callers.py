"""Who calls, how long they wait, what they repeat, what they misread, by their headers. Pure."""

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
PATIENCE_HEADERS: Final = ("x-stainless-read-timeout", "x-stainless-timeout")
"""Seconds that OpenAI's clients will wait: those for Python's, and, whole ones, Node.js's."""
_SHARE_OF_PATIENCE: Final = 0.95
"""Leaves the rest for our answer: a caller that gives up first asks again, and we draw twice."""
_SHARE_OF_SILENCE: Final = 1 / 3
"""A comment may be late."""
_CONFUSED_BY_EVENT_NAMES: Final = frozenset(
    {"AsyncOpenAI/Python 1.97.0", "AsyncOpenAI/Python 1.97.1"}
)
"""Wrap every named event of an image; the data alone, which tells its type, they read well."""


def client_of(headers: Mapping[str, str], *, client: AsyncClient) -> AsyncClient:
    """Returns a client that calls the server in the caller's name.

    Raises:
        ApiError: the key is none that could be right.
    """
    key = _key(headers)
    if not key:
        return client
    if len(key) > MAX_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
        message = "the API key is not of printable ASCII characters, or too long"
        raise ApiError(message, status=HTTPStatus.UNAUTHORIZED, code="invalid_api_key")
    return client.with_api_key(key)


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """Returns the id under which the server knows a repeat; None if the caller gave no key for it.

    An ``Idempotency-Key`` may be any text, and each caller has keys of their own.

    Raises:
        ApiError: the key is empty.
    """
    idempotency_key = headers.get(IDEMPOTENCY_KEY)
    if idempotency_key is None:
        return None
    if not idempotency_key.strip():
        message = f"'{IDEMPOTENCY_KEY}': is empty; send a text of your own, such as a UUID"
        raise ApiError(message, param=IDEMPOTENCY_KEY, code="invalid_value")
    named = json.dumps([_key(headers), idempotency_key]).encode()
    return str(uuid.UUID(bytes=hashlib.sha256(named).digest()[:16], version=5))


def patience_s(headers: Mapping[str, str], *, most_s: float) -> float:
    """Returns how long a generation may take; OpenAI's clients tell how long they will wait."""
    told_s = (_seconds(headers.get(name, "")) for name in PATIENCE_HEADERS)
    return min(most_s, *(_SHARE_OF_PATIENCE * seconds for seconds in told_s))


def _seconds(told: str) -> float:
    """Returns the time that a header tells; infinite if it tells none."""
    try:
        seconds = float(told)
    except ValueError:
        return math.inf
    return seconds if seconds > 0 else math.inf


def keep_alive_s(headers: Mapping[str, str], *, most_s: float) -> float:
    """Returns how long a stream may be silent: clients wait so long for each piece of it."""
    return min(most_s, patience_s(headers, most_s=math.inf) * _SHARE_OF_SILENCE)


def _key(headers: Mapping[str, str]) -> str:
    """Returns the caller's API key; empty if there is none."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def reads_event_names(headers: Mapping[str, str]) -> bool:
    """Whether the caller can be sent ``event:`` lines."""
    return headers.get("User-Agent") not in _CONFUSED_BY_EVENT_NAMES
