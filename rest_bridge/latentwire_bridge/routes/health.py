"""``/healthz`` and ``/readyz``: whether the bridge lives, and whether the server can draw."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

from latentwire import LatentwireError
from latentwire_bridge.openai.errors import MIN_RETRY_S, SERVER_ERROR, ApiError

if TYPE_CHECKING:
    from typing import Literal

    from latentwire import AsyncClient
    from latentwire_bridge.openai.answers import StatusAnswer

_CACHED_S: Final = 1.0
_TIMEOUT_S: Final = 0.5

_logger: Final = logging.getLogger(__name__)


class HealthRoutes:
    """Answers probes; however many there are, the server is asked once a second at most."""

    def __init__(self, client: AsyncClient) -> None:
        """Takes the server whose readiness is told."""
        self._client = client
        self._lock = asyncio.Lock()
        self._is_ready = False
        self._checked_at = -_CACHED_S

    async def live(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """Says that the bridge itself answers, whatever the server does."""
        return _status("ok")

    async def ready(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        """Says whether a generation would be drawn now."""
        if not await self._server_is_ready():
            message = "the image server is not ready"
            raise ApiError(
                message,
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                type_=SERVER_ERROR,
                code="not_ready",
                retry_after_s=MIN_RETRY_S,
            )
        return _status("ready")

    async def _server_is_ready(self) -> bool:
        async with self._lock:
            if time.monotonic() - self._checked_at >= _CACHED_S:
                was_ready = self._is_ready
                try:
                    await self._client.wait_ready(_TIMEOUT_S)
                    self._is_ready = True
                except LatentwireError as error:
                    self._is_ready = False
                    if was_ready:
                        _logger.warning("server is not ready reason=%s", error.message)
                if self._is_ready and not was_ready:
                    _logger.info("server is ready")
                self._checked_at = time.monotonic()
            return self._is_ready


def _status(status: Literal["ok", "ready"]) -> web.Response:
    answer: StatusAnswer = {"status": status}
    return web.Response(
        body=json.dumps(answer).encode(),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
