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
ADMIN_SERVICES: Final = frozenset({"latentwire.v1.ModelAdmin"})
"""Served to those who show an admin key."""

current_principal: ContextVar[str] = ContextVar("current_principal", default="")
"""The principal of the call that the current task serves."""


@dataclass(eq=False)
class Unauthenticated(CallerError):
    """The caller showed no valid key."""

    reason: str
    """``TOKEN_MISSING`` or ``TOKEN_INVALID``."""


@dataclass(eq=False)
class NotAllowed(CallerError):
    """The caller is known, and this is not for it."""

    service: str


class Authenticator:
    """Knows the digests of the keys, never the keys."""

    def __init__(
        self, keys: Iterable[str], *, admin_keys: Iterable[str] = (), admin_is_open: bool = False
    ) -> None:
        """Takes who may call what.

        Args:
            keys: for every service but administration; none of them: everybody is let in.
            admin_keys: for all services.
            admin_is_open: whether administration needs no key where there are no admin keys.
        """
        self._admin_digests = tuple(_digest(key.encode()) for key in admin_keys)
        own = tuple(_digest(key.encode()) for key in keys)
        self._digests = (*own, *self._admin_digests) if own else ()
        self._admin_is_open = admin_is_open

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
            NotAllowed: the key, or the lack of one, is good for other services alone.
        """
        is_for_admins = service in ADMIN_SERVICES
        digests = self._digests or (self._admin_digests if is_for_admins else ())
        if not digests or service in OPEN_SERVICES:
            self._check_admin(None, service=service)
            return _name_of(_digest(certificate_name)) if certificate_name else ""
        digest = _shown_key(metadata)
        # Every key is compared, so that the time taken tells nothing about which one was close.
        matches = [hmac.compare_digest(digest, known) for known in digests]
        if not any(matches):
            raise Unauthenticated(reason="TOKEN_INVALID")
        self._check_admin(digest, service=service)
        return _name_of(digest)

    def _check_admin(self, digest: bytes | None, *, service: str) -> None:
        if service not in ADMIN_SERVICES or (self._admin_is_open and not self._admin_digests):
            return
        shown = digest or b""
        matches = [hmac.compare_digest(shown, known) for known in self._admin_digests]
        if not any(matches):
            raise NotAllowed(service=service)


def _shown_key(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Returns the digest of the key that a caller shows."""
    shown = [value for key, value in metadata if key == "authorization"]
    if not shown:
        raise Unauthenticated(reason="TOKEN_MISSING")
    return _digest(_bearer(shown))


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
