"""Decides which web pages may call the bridge: only those that the operator allows. Pure.

A bridge on a user's machine is reachable from every page that the user's browser shows. ``Origin``
reveals a page of another origin, ``Host`` a page whose name was made to resolve to the bridge's
address (DNS rebinding). Programs send no ``Origin`` and are not affected.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from latentwire_bridge.openai.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

ANY: Final = "*"
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9_\-, ]{1,2000}")
_EXPOSED: Final = (
    "x-request-id, request-id, retry-after, retry-after-ms, x-should-retry, openai-processing-ms,"
    " openai-version, x-ratelimit-limit-requests, x-ratelimit-remaining-requests,"
    " x-ratelimit-reset-requests"
)
_PREFLIGHT_S: Final = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserPolicy:
    """The origins and host names that the operator allows."""

    cors_origins: frozenset[str] = frozenset()
    """Origins such as ``"https://app.example"`` whose pages may call; ``"*"`` is all of them."""
    allowed_hosts: frozenset[str] = frozenset({ANY})
    """Host names by which the bridge may be called, besides addresses; ``"*"`` is all of them."""

    def check(self, *, host: str | None, origin: str | None) -> None:
        """Checks where a request comes from.

        Raises:
            ApiError: The host name or the web page is not allowed.
        """
        if host is not None and not self._is_allowed_host(host):
            message = "this Host is not allowed; the operator can allow it: allowed_hosts"
            raise ApiError(message, status=HTTPStatus.FORBIDDEN, code="host_not_allowed")
        if origin is not None and not self._is_allowed_origin(origin):
            message = "this Origin is not allowed; the operator can allow it: cors_origins"
            raise ApiError(message, status=HTTPStatus.FORBIDDEN, code="origin_not_allowed")

    def cors_headers(self, origin: str | None) -> Mapping[str, str]:
        """Returns the headers with which a browser lets an allowed page read the response."""
        if origin is None or not self._is_allowed_origin(origin):
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _EXPOSED,
            "Vary": "Origin",
        }

    def _is_allowed_origin(self, origin: str) -> bool:
        return ANY in self.cors_origins or origin.lower() in self.cors_origins

    def _is_allowed_host(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower().rstrip(".")
        # An address cannot be rebound: only names can resolve to another address tomorrow.
        return (
            ANY in self.allowed_hosts
            or name in self.allowed_hosts
            or name == "localhost"
            or name.endswith(".localhost")
            or _is_address(name)
        )


def preflight_headers(requested: str | None) -> Mapping[str, str]:
    """Returns the response headers to a browser's preflight request for these headers."""
    names = requested if requested and _HEADER_NAMES.fullmatch(requested) else "content-type"
    return {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": names,
        "Access-Control-Max-Age": str(_PREFLIGHT_S),
    }


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
