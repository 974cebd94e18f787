"""Starts engines and checks that they leave no thread or task behind."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

pytest.register_assert_rewrite("tests.support.engine.detectors", "tests.support.engine.driving")

# Before the first import of these modules, so that their failed assertions show values.
from tests.support.engine.driving import Driver  # noqa: E402
from tests.support.fakes import FakeModel  # noqa: E402
from tests.support.time_limits import scaled  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from latentwire_server.models.protocol import DiffusionModel


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[Driver]]]:
    """Starts an engine: ``await start(model, max_rows=4)``."""
    threads = set(threading.enumerate())
    drivers: list[Driver] = []

    async def start(model: DiffusionModel | None = None, **settings: Any) -> Driver:
        driver = Driver(model or FakeModel(), **settings)
        await driver.engine.start()
        drivers.append(driver)
        return driver

    yield start
    for driver in drivers:
        if isinstance(driver._model, FakeModel):
            driver.model.let_go()
        await driver.engine.aclose()
    for thread in set(threading.enumerate()) - threads:
        if thread.name.startswith("latentwire-encode"):
            thread.join(timeout=scaled(5))
    left = [one for one in set(threading.enumerate()) - threads if one.name.startswith("latent")]
    assert left == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
