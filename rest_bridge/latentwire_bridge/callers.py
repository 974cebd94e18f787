"""Who calls, and for how long they will wait: what the request's headers tell the server. Pure."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from latentwire_bridge.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire import AsyncClient

MAX_KEY_CHARACTERS: Final = 4_096
"""gRPC drops calls whose metadata exceeds 8 KiB."""
_SHARE_OF_PATIENCE: Final = 0.95
"""Leaves the rest for our answer: a caller that gives up first asks again, and we draw twice."""


def client_of(headers: Mapping[str, str], *, client: AsyncClient) -> AsyncClient:
    """Returns a client that calls the server in the caller's name.

    Raises:
        ApiError: the key is none that could be right.
    """
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        return client
    if len(key) > MAX_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
        message = "the API key is not of printable ASCII characters, or too long"
        raise ApiError(message, status=HTTPStatus.UNAUTHORIZED, code="invalid_api_key")
    return client.with_api_key(key)


def patience_s(headers: Mapping[str, str], *, most_s: float) -> float:
    """Returns how long a generation may take; OpenAI's clients tell how long they will wait."""
    try:
        told_s = float(headers.get("x-stainless-read-timeout", "inf"))
    except ValueError:
        return most_s
    return min(most_s, told_s * _SHARE_OF_PATIENCE) if 0 < told_s < math.inf else most_s
