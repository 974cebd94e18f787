"""The grpc.aio server as we want it: options, credentials, the port."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import grpc

from latentwire_server.settings.files import SettingsError, read_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentwire_server.settings.settings import Settings

OPTIONS: Final = (
    # A second server on the same port is a mistake to be told, not a way to share load.
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 100),
    # A client that vanished without a word frees its slot within 30 s. The time-out that works is
    # the ping's: keepalive_timeout_ms is dead code in gRPC core (grpc#39239).
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Clients may ping while they wait in silence, and are not cut off for it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
)


def build_server(
    settings: Settings, *, interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> grpc.aio.Server:
    """Returns a server without services that does not listen yet. No compression: images."""
    options = (*OPTIONS, ("grpc.max_receive_message_length", settings.max_request_bytes))
    return grpc.aio.server(interceptors=list(interceptors), options=options)


def check_address(settings: Settings) -> None:
    """Looks whether the port can be had, since gRPC's core has a line of its own for a taken one.

    Blocks for as long as the host's name takes to resolve.

    Raises:
        SettingsError: the port is taken, or the host is not ours.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        for family, _, _, _, address in found:
            socket.create_server(address, family=family).close()
    except OSError:
        raise SettingsError(_not_ours(settings)) from None


def bind(
    server: grpc.aio.Server, settings: Settings, *, credentials: grpc.ServerCredentials | None
) -> str:
    """Takes the port and returns the address that clients connect to.

    Raises:
        SettingsError: the port is taken, the host is not ours, or a certificate is no good.
    """
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    wanted = f"{host}:{settings.port}"
    try:
        if credentials is None:
            port = server.add_insecure_port(wanted)
        else:
            port = server.add_secure_port(wanted, credentials)
    except (RuntimeError, ValueError):
        message = _not_ours(settings)
        if settings.tls_cert_file:
            message += ", or the TLS certificate and key do not fit"
        raise SettingsError(message) from None
    return f"{host}:{port}"


def _not_ours(settings: Settings) -> str:
    return (
        f"cannot listen: port={settings.port} is taken,"
        f" or host={settings.host!r} is not an address of this machine"
    )


def read_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Returns what TLS needs, read from its files; None: plain text.

    Raises:
        SettingsError: a file cannot be read.
    """
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    authorities = settings.tls_client_ca_file
    return grpc.ssl_server_credentials(
        [
            (
                read_file("tls_key_file", settings.tls_key_file),
                read_file("tls_cert_file", settings.tls_cert_file),
            )
        ],
        root_certificates=read_file("tls_client_ca_file", authorities) if authorities else None,
        require_client_auth=authorities is not None,
    )
