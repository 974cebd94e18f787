"""What a channel to the server is made from: address, options, retries, credentials. No I/O.

Both clients open their channels from one ``Target``, so that they differ in I/O only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import grpc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_SERVER: Final = "localhost:50051"
DEFAULT_TIMEOUT_S: Final = 30.0
"""Applies to every call except generations and loads."""
SERVICE: Final = "latentwire.v1.ImageGeneration"

_DEFAULT_PORT: Final = 50051
_DEFAULT_TLS_PORT: Final = 443
_SECURE_SCHEMES: Final = frozenset({"https", "grpcs"})
_PLAIN_SCHEMES: Final = frozenset({"http", "grpc"})

# Reads only: a repeated GenerateImage would generate twice.
_RETRIED_METHODS: Final = (
    "GetGeneration",
    "ListGenerations",
    "ListModels",
    "GetModel",
    "GetServerInfo",
)
_SERVICE_CONFIG: Final[Mapping[str, object]] = {
    "methodConfig": [
        {
            "name": [{"service": SERVICE, "method": method} for method in _RETRIED_METHODS],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
# Message sizes stay at gRPC's defaults: the contract fits into them.
_CHANNEL_OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # Detects a peer that vanished without a FIN within 40 s, even while a generation is queued.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Reconnects to a restarted server within 2 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server's address and everything needed to call it."""

    address: str
    """In gRPC's notation: ``host:port``, ``unix:path`` or another resolver's form."""
    credentials: grpc.ChannelCredentials | None
    """None: no TLS."""
    metadata: tuple[tuple[str, str], ...]
    """Sent with every call."""
    options: tuple[tuple[str, str | int], ...]


def target_from(
    server: str,
    *,
    api_key: str | None,
    credentials: grpc.ChannelCredentials | None,
    options: Sequence[tuple[str, str | int]],
) -> Target:
    """Returns the target for a server's address and a caller's options.

    Args:
        server: ``host:port``; the port may be omitted. A leading ``https://`` or ``grpcs://``
            switches TLS on.
        api_key: Sent as a bearer token.
        credentials: TLS credentials, for certificates of your own. Switches TLS on.
        options: Further gRPC channel options, which override the client's own.

    Raises:
        ValueError: The address is empty, its port is invalid, or the key cannot be sent.
    """
    if not server:
        msg = "server is empty; needed: host:port"
        raise ValueError(msg)
    address, is_secure = _address(server)
    if is_secure and credentials is None:
        credentials = grpc.ssl_channel_credentials()
    return Target(
        address=address,
        credentials=credentials,
        metadata=metadata_from(api_key),
        options=(*_CHANNEL_OPTIONS, *_proxy_options(address), *options),
    )


def metadata_from(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that identifies the caller.

    Raises:
        ValueError: The key has characters that no header can carry.
    """
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        msg = "the API key has characters that no header can carry"
        raise ValueError(msg)
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def _proxy_options(address: str) -> tuple[tuple[str, int], ...]:
    """Keeps calls to this machine away from the proxy in ``http_proxy``."""
    host = address.rpartition(":")[0].strip("[]")
    is_this_machine = host in {"localhost", "::1"} or host.startswith("127.")
    return (("grpc.enable_http_proxy", 0),) if is_this_machine else ()


def _address(server: str) -> tuple[str, bool]:
    scheme, separator, _ = server.partition("://")
    if not separator or scheme not in _SECURE_SCHEMES | _PLAIN_SCHEMES:
        # gRPC itself would default to port 443.
        return server if ":" in server else f"{server}:{_DEFAULT_PORT}", False
    parts = urlsplit(server)
    is_secure = scheme in _SECURE_SCHEMES
    host = parts.hostname or "localhost"
    port = parts.port or (_DEFAULT_TLS_PORT if is_secure else _DEFAULT_PORT)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", is_secure
