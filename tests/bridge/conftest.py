from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from blockbuster import blockbuster_ctx

from tests.support.bridge.bridging import Bridge, bridging
from tests.support.client.scripted_server import ScriptedServicer
from tests.support.client.scripted_server import serving as serving_script
from tests.support.server.serving import Serving, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(autouse=True)
def _event_loop_is_never_blocked() -> Iterator[None]:
    """Watches the bridge and the client only: the server in the same loop blocks when it starts."""
    with blockbuster_ctx(["latentwire_bridge", "latentwire"]) as detector:
        detector.functions["threading.Lock.acquire"].deactivate()
        yield


@pytest.fixture
async def server() -> AsyncIterator[Serving]:
    """The real server around a FakeModel."""
    async with serving() as running:
        yield running


@pytest.fixture
async def bridge(server: Serving) -> AsyncIterator[Bridge]:
    async with bridging(server.address) as running:
        yield running


@pytest.fixture
def servicer() -> ScriptedServicer:
    return ScriptedServicer()


@pytest.fixture
def scripted_address(servicer: ScriptedServicer) -> Iterator[str]:
    with serving_script(servicer) as address:
        yield address


@pytest.fixture
async def scripted_bridge(scripted_address: str) -> AsyncIterator[Bridge]:
    """A bridge in front of a server whose answers the test scripts in ``servicer``."""
    async with bridging(scripted_address) as running:
        yield running


@pytest.fixture
async def keyed_bridge() -> AsyncIterator[Bridge]:
    """A bridge in front of a server that requires the key "right"."""
    async with (
        serving(api_keys="right") as keyed,
        bridging(keyed.address) as running,
    ):
        yield running
