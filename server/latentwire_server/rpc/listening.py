"""The grpc.aio server: its options, credentials and port."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import grpc

from latentwire._services.process import host_and_port
from latentwire_server.settings.files import SettingsError, read_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentwire_server.settings.settings import Settings

OPTIONS: Final = (
    # A second server on the same port is a mistake to report, not a way to share load.
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 100),
    # A client that vanished silently frees its slot within 30 s. The time-out that works is the
    # ping's: keepalive_timeout_ms is dead code in gRPC core (grpc#39239).
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Clients that ping while they wait for an event are not disconnected for it.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
)


def build_server(
    settings: Settings, *, interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> grpc.aio.Server:
    """Returns a server without services or port. No compression: images are compressed already."""
    options = (*OPTIONS, ("grpc.max_receive_message_length", settings.max_request_bytes))
    return grpc.aio.server(interceptors=list(interceptors), options=options)


def check_address(settings: Settings) -> None:
    """Checks that the port is free, since gRPC's core logs a line of its own for one in use.

    Blocks while the host's name is resolved.

    Raises:
        SettingsError: The port is in use, or the host is not an address of this machine.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        for family, _, _, _, address in found:
            socket.create_server(address, family=family).close()
    except OSError:
        raise SettingsError(_cannot_listen(settings)) from None


def bind(
    server: grpc.aio.Server, settings: Settings, *, credentials: grpc.ServerCredentials | None
) -> str:
    """Binds the port and returns the address that clients connect to.

    Raises:
        SettingsError: The port is in use, the host is not an address of this machine, or the
            certificate and key do not match.
    """
    wanted = host_and_port(settings.host, settings.port)
    try:
        if credentials is None:
            port = server.add_insecure_port(wanted)
        else:
            port = server.add_secure_port(wanted, credentials)
    except (RuntimeError, ValueError):
        message = _cannot_listen(settings)
        if settings.tls_cert_file:
            message += ", or the TLS certificate and key do not fit"
        raise SettingsError(message) from None
    return host_and_port(settings.host, port)


def _cannot_listen(settings: Settings) -> str:
    return (
        f"cannot listen: port={settings.port} is taken,"
        f" or host={settings.host!r} is not an address of this machine"
    )


def read_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Reads the TLS files; returns None for plain text.

    Raises:
        SettingsError: A file cannot be read.
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
