"""How much room the queue has, as OpenAI's ``x-ratelimit-*`` headers. Event loop only.

The server is asked while it draws, and once a second at most: whoever waits for a picture does not
wait for this.
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
    """The state of the server's queue, as it was a moment ago."""

    def __init__(self) -> None:
        self._info: ServerInfo | None = None
        self._asked_at = -math.inf
        self._asking: asyncio.Task[None] | None = None

    def refresh(self, client: AsyncClient) -> None:
        """Asks the server in the background, unless that was done just now.

        Args:
            client: One that the server lets in.
        """
        is_asking = self._asking is not None and not self._asking.done()
        if is_asking or time.monotonic() - self._asked_at < _CACHED_S:
            return
        self._asked_at = time.monotonic()
        self._asking = asyncio.create_task(self._ask(client))

    async def headers(self) -> Mapping[str, str]:
        """Returns what a caller who was let in is told; nothing if the server never answered."""
        info = await self._latest()
        if info is None:
            return {}
        return limit_headers(
            limit=info.max_queued,
            remaining=max(0, info.max_queued - info.queued_count),
            reset_s=info.estimated_wait_s or 0.0,
        )

    async def headers_when_full(self, retry_after_s: float) -> Mapping[str, str]:
        """Returns what a caller is told for whom there was no room."""
        info = await self._latest()
        if info is None:
            return {}
        return limit_headers(limit=info.max_queued, remaining=0, reset_s=retry_after_s)

    async def aclose(self) -> None:
        """Stops asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _latest(self) -> ServerInfo | None:
        if self._asking is not None:
            await asyncio.wait([self._asking])
        return self._info

    async def _ask(self, client: AsyncClient) -> None:
        # A server that does not answer costs the headers, and says itself what is wrong with it.
        with contextlib.suppress(LatentwireError, TimeoutError):
            async with asyncio.timeout(_TIMEOUT_S):
                self._info = await client.server_info()


def limit_headers(*, limit: int, remaining: int, reset_s: float) -> Mapping[str, str]:
    """Returns the headers.

    Args:
        limit: How many requests may wait.
        remaining: How many more may come now.
        reset_s: When the queue will be empty, in seconds from now.
    """
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": _duration(reset_s),
    }


def _duration(seconds: float) -> str:
    """Returns a time span as OpenAI writes it: ``"1s"``, ``"6m0s"``."""
    minutes, rest = divmod(math.ceil(seconds), _MINUTE_S)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
