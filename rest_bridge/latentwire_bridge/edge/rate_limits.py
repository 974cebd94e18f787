"""The free places in the server's queue, as OpenAI's ``x-ratelimit-*`` headers. Event loop only.

The server is asked while it generates, and once a second at most: no request waits for this.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import TYPE_CHECKING, Final

from latentwire import LatentwireError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire import AsyncClient, ServerInfo

_CACHED_S: Final = 1.0
_TIMEOUT_S: Final = 0.25
_MINUTE_S: Final = 60


class RateLimits:
    """The latest known state of the server's queue."""

    def __init__(self) -> None:
        self._info: ServerInfo | None = None
        self._asked_at = -math.inf
        self._asking: asyncio.Task[None] | None = None

    def refresh(self, client: AsyncClient) -> None:
        """Asks the server in the background, unless it was asked within the last second.

        Args:
            client: A client with a key that the server accepts.
        """
        is_asking = self._asking is not None and not self._asking.done()
        if is_asking or time.monotonic() - self._asked_at < _CACHED_S:
            return
        self._asked_at = time.monotonic()
        self._asking = asyncio.create_task(self._ask(client))

    async def headers(self, *, full_for_s: float | None = None) -> Mapping[str, str]:
        """Returns the headers; none if the server never answered.

        Args:
            full_for_s: When there will be room again, for a caller whom the full queue refused.
        """
        if self._asking is not None:
            await asyncio.wait([self._asking])
        info = self._info
        if info is None:
            return {}
        remaining, reset_s = max(0, info.max_queued - info.queued_count), info.estimated_wait_s
        if full_for_s is not None:
            remaining, reset_s = 0, full_for_s
        return {
            "x-ratelimit-limit-requests": str(info.max_queued),
            "x-ratelimit-remaining-requests": str(remaining),
            "x-ratelimit-reset-requests": _duration(reset_s or 0.0),
        }

    async def aclose(self) -> None:
        """Cancels a call that is under way."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self, client: AsyncClient) -> None:
        # If the server does not answer, the headers are left out; the generation reports why.
        with contextlib.suppress(LatentwireError, TimeoutError):
            async with asyncio.timeout(_TIMEOUT_S):
                self._info = await client.server_info()


def _duration(seconds: float) -> str:
    """Returns a time span as OpenAI writes it: ``"1s"``, ``"6m0s"``."""
    minutes, rest = divmod(math.ceil(seconds), _MINUTE_S)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
