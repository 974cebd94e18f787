"""Forms of server addresses, and the options of channels."""

from __future__ import annotations

import grpc
import pytest

from latentwire._channel import target_from


def target(server: str, **changes):
    return target_from(server, **{"api_key": None, "credentials": None, "options": (), **changes})


@pytest.mark.parametrize(
    ("server", "address", "is_secure"),
    [
        ("localhost:50051", "localhost:50051", False),
        ("gpu-box", "gpu-box:50051", False),
        ("http://gpu-box", "gpu-box:50051", False),
        ("https://example.org", "example.org:443", True),
        ("grpcs://example.org:7000", "example.org:7000", True),
        ("http://[::1]:7000", "[::1]:7000", False),
        ("unix:/run/latentwire.sock", "unix:/run/latentwire.sock", False),
        ("dns:///example.org:7000", "dns:///example.org:7000", False),
    ],
)
def test_an_address_may_have_these_forms(server, address, is_secure):
    assert target(server).address == address
    assert (target(server).credentials is not None) == is_secure


def test_credentials_of_the_caller_enable_tls():
    credentials = grpc.ssl_channel_credentials()
    assert target("example.org:7000", credentials=credentials).credentials is credentials


@pytest.mark.parametrize("server", ["", "https://example.org:port"])
def test_an_invalid_address_is_refused(server):
    with pytest.raises(ValueError, match=r"server is empty|[Pp]ort"):
        target(server)


@pytest.mark.parametrize(
    ("server", "is_direct"),
    [("localhost:1", True), ("127.0.0.5:1", True), ("[::1]:1", True), ("example.org:1", False)],
)
def test_a_proxy_is_only_used_for_other_machines(server, is_direct):
    assert (("grpc.enable_http_proxy", 0) in target(server).options) == is_direct


def test_options_of_the_caller_override_the_defaults():
    options = target("a:1", options=(("grpc.keepalive_time_ms", 1),)).options
    assert dict(options)["grpc.keepalive_time_ms"] == 1
