"""Who calls: bearer keys in, principals out.

A principal is an opaque name for the holder of a key; generations belong to it. Without keys
there is one principal, the empty one. Event loop only.
"""

from __future__ import annotations

import hashlib
import hmac
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latentwire_server.engine.errors import CallerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OPEN_SERVICES: Final = frozenset({"grpc.health.v1.Health"})
"""Served without a key, for probes."""

current_principal: ContextVar[str] = ContextVar("current_principal", default="")
"""The principal of the call that the current task serves."""


@dataclass(eq=False)
class Unauthenticated(CallerError):
    """The caller showed no valid key."""

    reason: str
    """``TOKEN_MISSING`` or ``TOKEN_INVALID``."""


class Authenticator:
    """Knows the digests of the keys, never the keys."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Takes the keys; none of them: everybody is let in."""
        self._digests = tuple(_digest(key.encode()) for key in keys)

    def principal(
        self,
        service: str,
        metadata: Iterable[tuple[str, str | bytes]],
        *,
        certificate_name: bytes = b"",
    ) -> str:
        """Returns who calls ``service``.

        Args:
            service: full name of the service.
            metadata: what the caller sent.
            certificate_name: common name of the caller's certificate, which says who it is where
                no keys are asked for.

        Raises:
            Unauthenticated: a key is wanted, and the metadata has none or a wrong one.
        """
        if not self._digests or service in OPEN_SERVICES:
            return _name_of(_digest(certificate_name)) if certificate_name else ""
        shown = [value for key, value in metadata if key == "authorization"]
        if not shown:
            raise Unauthenticated(reason="TOKEN_MISSING")
        digest = _digest(_bearer(shown))
        # Every key is compared, so that the time taken tells nothing about which one was close.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthenticated(reason="TOKEN_INVALID")
        return _name_of(digest)


def _bearer(shown: Sequence[str | bytes]) -> bytes:
    value = shown[0]
    header = value.encode() if isinstance(value, str) else value
    scheme, _, token = header.partition(b" ")
    if len(shown) > 1 or scheme.lower() != b"bearer" or not token.strip():
        raise Unauthenticated(reason="TOKEN_INVALID")
    return token.strip()


def _name_of(digest: bytes) -> str:
    return digest.hex()[:16]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
