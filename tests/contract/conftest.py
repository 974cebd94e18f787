from __future__ import annotations

import socket

import pytest

from tests.contract.live import serving


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    """The product on the embedded model, started once for all that calls it."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    with serving(tmp_path_factory.mktemp("live"), port=ports[0], bridge_port=ports[1]) as live:
        yield live
