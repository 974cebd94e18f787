"""Starts the bridge, serves requests and drains. Event loop only."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from aiohttp import web

from latentwire import AsyncClient
from latentwire._services.process import host_and_port, is_loopback, stop_signals
from latentwire._services.settings import SettingsError, write_port_file
from latentwire_bridge.api_description.document import DescriptionRoute
from latentwire_bridge.edge.browsers import ANY, BrowserPolicy
from latentwire_bridge.edge.edge import EdgeProtocol, HttpEdge
from latentwire_bridge.edge.rate_limits import RateLimits
from latentwire_bridge.files.file_store import FileStore
from latentwire_bridge.files.private_folder import PrivateFolder
from latentwire_bridge.routes.files import FileRoutes
from latentwire_bridge.routes.health import HealthRoutes
from latentwire_bridge.routes.images import ImageRoutes
from latentwire_bridge.routes.models import ModelRoutes
from latentwire_bridge.routes.table import ROUTES, Handlers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from latentwire_bridge.settings import Settings

# Reconnects within a second of the server's return, also after a long absence.
_CHANNEL_OPTIONS: Final = (("grpc.max_reconnect_backoff_ms", 1_000),)
_KEEPALIVE_S: Final = 75.0
_SWEEP_INTERVAL_S: Final = 60.0

_logger: Final = logging.getLogger(__name__)


def build_app(
    settings: Settings, *, client: AsyncClient, files: FileStore, limits: RateLimits
) -> web.Application:
    """Returns the application with its routes, by the paths that ``canonical_path`` makes."""
    models = ModelRoutes(client, aliases=settings.aliases)
    stored_files = FileRoutes(files, public_url=settings.public_url)
    handlers = Handlers(
        images=ImageRoutes(
            client, models=models, files=stored_files, limits=limits, settings=settings
        ),
        models=models,
        files=stored_files,
        health=HealthRoutes(client),
        description=DescriptionRoute(settings).get,
    )
    app = web.Application(client_max_size=settings.max_body_bytes)
    for route in ROUTES:
        # Names of models and files may contain slashes.
        path = re.sub(r"{(\w+)}", r"{\1:.+}", route.path)
        handler = route.handler(handlers)
        if route.method == "GET":
            app.router.add_get(path, handler)  # and HEAD
        else:
            app.router.add_route(route.method, path, handler)
    return app


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    """Runs a bridge while the context lasts, and yields its URL.

    Raises:
        SettingsError: The bridge cannot start.
    """
    async with AsyncExitStack() as stack:
        try:
            folder = await asyncio.to_thread(PrivateFolder, settings.files_folder)
        except OSError as error:
            message = f"files_folder={str(settings.files_folder)!r}: {error.strerror}"
            raise SettingsError(message) from None
        stack.push_async_callback(asyncio.to_thread, folder.close)
        files = FileStore(
            folder.path,
            max_files=settings.max_files,
            max_bytes=settings.max_files_bytes,
            ttl_s=settings.files_ttl_s,
        )
        stack.callback(asyncio.create_task(_sweep(files)).cancel)
        try:
            client = AsyncClient(settings.server, channel_options=_CHANNEL_OPTIONS)
        except ValueError:
            message = f"server={settings.server!r}: must be host:port"
            raise SettingsError(message) from None
        await stack.enter_async_context(client)
        limits = RateLimits()
        stack.push_async_callback(limits.aclose)
        runner = web.AppRunner(
            build_app(settings, client=client, files=files, limits=limits),
            # Otherwise a generation continues when its caller leaves.
            handler_cancellation=True,
            shutdown_timeout=settings.grace_s,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        listener = await _listen(runner, settings)
        stack.callback(listener.close)
        port: int = listener.sockets[0].getsockname()[1]
        if settings.port_file is not None:
            await asyncio.to_thread(write_port_file, settings.port_file, port)
        url = f"http://{host_and_port(settings.host, port)}"
        _logger.info("listening url=%s server=%s", url, settings.server)
        if not is_loopback(settings.host):
            _logger.warning(
                "reachable from other machines, and protected by the server's keys only"
            )
        yield url
        _logger.info("draining grace_s=%.1f", settings.grace_s)
    _logger.info("stopped")


async def serve(settings: Settings) -> None:
    """Runs a bridge until the process receives a signal to stop.

    Raises:
        SettingsError: The bridge cannot start.
    """
    stop = stop_signals(_logger)
    async with running(settings):
        await stop.wait()


def _browsers(settings: Settings) -> BrowserPolicy:
    hosts = {host.lower() for host in settings.allowed_hosts}
    if settings.public_url is not None:
        hosts.add(urlsplit(settings.public_url).hostname or "")
    if not (is_loopback(settings.host) or settings.allowed_hosts):
        # The bridge cannot know its own names on a network.
        hosts.add(ANY)
    return BrowserPolicy(
        cors_origins=frozenset(origin.lower().rstrip("/") for origin in settings.cors_origins),
        allowed_hosts=frozenset(hosts),
    )


async def _listen(runner: web.AppRunner, settings: Settings) -> asyncio.Server:
    """Listens, with the HTTP edge around the application's routes.

    Raises:
        SettingsError: The port or the host is not available.
    """
    server = runner.server
    if server is None:
        msg = "the runner was not set up"
        raise RuntimeError(msg)
    # Outside aiohttp's application, whose own 404, 405 and 417 bypass middlewares.
    server.request_handler = HttpEdge(server.request_handler, browsers=_browsers(settings))
    loop = asyncio.get_running_loop()

    def connection() -> EdgeProtocol:
        return EdgeProtocol(server, loop=loop, keepalive_timeout=_KEEPALIVE_S)

    try:
        return await loop.create_server(connection, settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or "not an address of this machine"
        message = f"cannot listen on host={settings.host!r} port={settings.port}: {reason}"
        raise SettingsError(message) from None


async def _sweep(files: FileStore) -> None:
    while True:
        await asyncio.sleep(_SWEEP_INTERVAL_S)
        await asyncio.to_thread(files.remove_expired)
