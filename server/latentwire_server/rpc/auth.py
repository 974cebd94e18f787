"""Authenticates callers: bearer keys in, principals out.

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
    from collections.abc import Iterable

OPEN_SERVICES: Final = frozenset({"grpc.health.v1.Health"})
"""Served without a key, for probes."""
ADMIN_SERVICES: Final = frozenset({"latentwire.v1.ModelAdmin"})
"""Served to callers with an admin key."""

current_principal: ContextVar[str] = ContextVar("current_principal", default="")
"""The principal of the call that the current task serves."""


@dataclass(eq=False)
class Unauthenticated(CallerError):
    """The caller presented no valid key."""

    reason: str
    """``TOKEN_MISSING`` or ``TOKEN_INVALID``."""


@dataclass(eq=False)
class NotAllowed(CallerError):
    """The caller is known, but may not use this service."""

    service: str


class Authenticator:
    """Compares digests; the keys themselves are not kept."""

    def __init__(
        self, keys: Iterable[str], *, admin_keys: Iterable[str] = (), admin_is_open: bool = False
    ) -> None:
        """Prepares the digests.

        Args:
            keys: Valid for every service but administration. If empty, no key is required.
            admin_keys: Valid for all services.
            admin_is_open: Whether administration needs no key if there are no admin keys.
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
        """Returns the caller of ``service``.

        Args:
            service: Full name of the service.
            metadata: The caller's.
            certificate_name: Common name of the caller's certificate, which identifies the caller
                where no key is required.

        Raises:
            Unauthenticated: A key is required, and the metadata has none or a wrong one.
            NotAllowed: The caller may only use other services.
        """
        is_for_admins = service in ADMIN_SERVICES
        digests = self._digests or (self._admin_digests if is_for_admins else ())
        if not digests or service in OPEN_SERVICES:
            self._check_admin(None, service=service)
            return _name_of(_digest(certificate_name)) if certificate_name else ""
        digest = _key_digest(metadata)
        # Every key is compared, so that the time taken does not depend on which one matches.
        matches = [hmac.compare_digest(digest, known) for known in digests]
        if not any(matches):
            raise Unauthenticated(reason="TOKEN_INVALID")
        self._check_admin(digest, service=service)
        return _name_of(digest)

    def _check_admin(self, digest: bytes | None, *, service: str) -> None:
        if service not in ADMIN_SERVICES or (self._admin_is_open and not self._admin_digests):
            return
        matches = [hmac.compare_digest(digest or b"", known) for known in self._admin_digests]
        if not any(matches):
            raise NotAllowed(service=service)


def _key_digest(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Returns the digest of the bearer key in a call's metadata."""
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        raise Unauthenticated(reason="TOKEN_MISSING")
    header = values[0].encode() if isinstance(values[0], str) else values[0]
    scheme, _, token = header.partition(b" ")
    if len(values) > 1 or scheme.lower() != b"bearer" or not token.strip():
        raise Unauthenticated(reason="TOKEN_INVALID")
    return _digest(token.strip())


def _name_of(digest: bytes) -> str:
    return digest.hex()[:16]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
