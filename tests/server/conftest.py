from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.server.serving import Serving, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def server() -> AsyncIterator[Serving]:
    async with serving() as running:
        yield running
