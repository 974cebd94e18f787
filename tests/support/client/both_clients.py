"""Both clients behind the same interface, so that a test runs with each of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import latentwire


class InThreads:
    """Runs the calls of the sync client off the event loop."""

    def __init__(self, client: latentwire.Client) -> None:
        self._client = client

    def __getattr__(self, name):
        async def call(*args, **kwargs):
            return await asyncio.to_thread(getattr(self._client, name), *args, **kwargs)

        return call

    def sibling(self, api_key):
        return InThreads(self._client.with_api_key(api_key))

    def events(self, *args, **kwargs):
        return _ThreadedStream(self._client.stream(*args, **kwargs))


class _ThreadedStream:
    def __init__(self, stream) -> None:
        self.stream = stream

    def __aiter__(self):
        return self

    async def __anext__(self):
        event = await asyncio.to_thread(next, self.stream, None)
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        self.stream.__exit__(*exc)

    async def aclose(self):
        self.stream.close()


class OnLoop:
    def __init__(self, client: latentwire.AsyncClient) -> None:
        self._client = client

    def __getattr__(self, name):
        return getattr(self._client, name)

    def sibling(self, api_key):
        return OnLoop(self._client.with_api_key(api_key))

    def events(self, *args, **kwargs):
        return self._client.stream(*args, **kwargs)
