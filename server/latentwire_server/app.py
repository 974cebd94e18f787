"""Runs the server: listen, load, serve, drain.

It listens before the model is loaded, so that probes and clients get a clear answer meanwhile.
Event loop only; loading has a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Final

from latentwire._services.process import stop_signals, version
from latentwire._services.settings import write_port_file
from latentwire.v1 import image_generation_pb2_grpc as rpc
from latentwire_server.convert.image_metadata import describe_image
from latentwire_server.convert.resources import model_name
from latentwire_server.engine.engine import Engine
from latentwire_server.registry.catalogue import Catalogue, ModelState
from latentwire_server.registry.registry import ModelRegistry
from latentwire_server.requests.refused_words import NoWordError, RefusedWords
from latentwire_server.rpc.admin_servicer import ModelAdminServicer
from latentwire_server.rpc.auth import Authenticator
from latentwire_server.rpc.edge import RpcEdge
from latentwire_server.rpc.health import Health
from latentwire_server.rpc.listening import bind, build_server, check_address, read_credentials
from latentwire_server.rpc.reflection import add_reflection
from latentwire_server.rpc.servicer import ImageGenerationServicer
from latentwire_server.service.generations import GenerationService, ServerFacts
from latentwire_server.service.recordings import Recordings
from latentwire_server.settings.files import SettingsError, read_keys, read_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentwire_server.registry.loadable_model import LoadableModel
    from latentwire_server.settings.settings import Settings

DEVICE_FAILED: Final = 70
"""Exit code for a broken device: EX_SOFTWARE of sysexits.h. A supervisor restarts the server."""
_STOP_GRACE_S: Final = 0.5
"""For calls that are not generations, such as open health watches."""
_CLOSE_TIMEOUT_S: Final = 3.0
_LIBRARIES: Final = ("torch", "diffusers", "transformers", "grpcio", "pillow")

_logger: Final = logging.getLogger(__name__)


class Application:
    """One server, from start to stop."""

    def __init__(
        self,
        settings: Settings,
        models: Sequence[LoadableModel],
        *,
        keys: Sequence[str],
        admin_keys: Sequence[str],
        refused_words: RefusedWords | None,
        facts: ServerFacts,
    ) -> None:
        self._settings = settings
        self._version = facts.version
        self._models = tuple(models)
        describe = partial(describe_image, version=facts.version)
        self._engine = Engine(settings.engine, describe=describe)
        self._catalogue = Catalogue(self._models)
        self._health = Health(model_name(model.id) for model in models)
        self._registry = ModelRegistry(
            models,
            engine=self._engine,
            catalogue=self._catalogue,
            budget_bytes=partial(_budget_bytes, settings),
            on_change=self._update_health,
        )
        self._service = GenerationService(
            self._engine,
            self._catalogue,
            registry=self._registry,
            recordings=Recordings(ttl_s=settings.replay_ttl_s, max_bytes=settings.replay_max_bytes),
            facts=facts,
            refused_words=refused_words,
        )
        authenticator = Authenticator(
            keys, admin_keys=admin_keys, admin_is_open=settings.admin_is_open
        )
        edge = RpcEdge(authenticator, send_timeout_s=settings.send_timeout_s)
        self._server = build_server(settings, interceptors=[edge])
        rpc.add_ImageGenerationServicer_to_server(
            ImageGenerationServicer(self._service), self._server
        )
        rpc.add_ModelAdminServicer_to_server(
            ModelAdminServicer(self._registry, self._catalogue), self._server
        )
        self._health.add_to(self._server)
        add_reflection(self._server)
        self.address = ""
        """The address that clients connect to, set by ``start``."""

    async def start(self) -> None:
        """Starts to listen, before any model is loaded.

        Raises:
            SettingsError: The port or the host is not available.
        """
        credentials = await asyncio.to_thread(read_credentials, self._settings)
        await asyncio.to_thread(check_address, self._settings)
        self.address = bind(self._server, self._settings, credentials=credentials)
        await self._engine.start()
        await self._server.start()
        if self._settings.port_file is not None:
            port = int(self.address.rpartition(":")[2])
            await asyncio.to_thread(write_port_file, self._settings.port_file, port)
        _logger.info("listening address=%s version=%s", self.address, self._version)

    async def load(self) -> None:
        """Loads the models that are wanted at the start; if the device breaks, ``failed`` is set.

        Raises:
            SettingsError: No model can be served.
        """
        started = time.monotonic()
        await self._registry.start()
        if not self._engine.failed.is_set():
            start_s = time.monotonic() - started
            _logger.info("ready address=%s start_s=%.1f", self.address, start_s)

    @property
    def failed(self) -> asyncio.Event:
        """Set when the device breaks."""
        return self._engine.failed

    async def wait_until_delivered(self) -> None:
        """Waits until no client is being sent the events of a generation."""
        await self._service.wait_until_delivered()

    async def stop(self, *, grace_s: float) -> None:
        """Refuses new work, lets running generations finish within ``grace_s``, and stops."""
        self._health.stop()
        end = time.monotonic() + grace_s
        load = self._engine.status()
        _logger.info(
            "draining queued=%d running=%d grace_s=%.1f",
            load.queued_count,
            load.running_count,
            grace_s,
        )
        await self._engine.drain(grace_s=grace_s)
        try:
            # The last images and errors may still be in transit when the engine is idle.
            async with asyncio.timeout(max(_STOP_GRACE_S, end - time.monotonic())):
                await self.wait_until_delivered()
        except TimeoutError:
            _logger.warning("clients did not read to the end")
        await self._registry.aclose()
        await self._server.stop(_STOP_GRACE_S)
        await self._service.aclose()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._engine.aclose()
        except TimeoutError:
            _logger.warning("device thread did not stop")
        _logger.info("stopped")

    def _update_health(self) -> None:
        for model in self._models:
            is_ready = self._catalogue.state(model.id) is ModelState.READY
            self._health.model(model_name(model.id), is_ready=is_ready)
        self._health.services(are_ready=self._registry.is_serving)


async def build(settings: Settings, models: Sequence[LoadableModel]) -> Application:
    """Returns a server that does not listen yet.

    Raises:
        SettingsError: A file named in the settings cannot be read.
    """
    keys = await asyncio.to_thread(
        read_keys, settings.api_keys, "api_keys_file", settings.api_keys_file
    )
    admin_keys = await asyncio.to_thread(
        read_keys, settings.admin_keys, "admin_keys_file", settings.admin_keys_file
    )
    refused_words = await asyncio.to_thread(read_refused_words, settings)
    facts = await asyncio.to_thread(_facts, settings)
    return Application(
        settings,
        models,
        keys=keys,
        admin_keys=admin_keys,
        refused_words=refused_words,
        facts=facts,
    )


async def serve(settings: Settings, models: Sequence[LoadableModel]) -> int:
    """Runs a server until a signal stops it, and returns the process's exit code.

    Args:
        settings: Of the server.
        models: The default model comes first.

    Raises:
        SettingsError: The server cannot start.
    """
    stop_requested = stop_signals(_logger)
    app = await build(settings, models)
    await app.start()
    loading = asyncio.create_task(app.load())
    stopping = asyncio.create_task(stop_requested.wait())
    failing = asyncio.create_task(app.failed.wait())
    try:
        await asyncio.wait({loading, stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        has_failed = failing.done()
    finally:
        for task in (loading, stopping, failing):
            task.cancel()
        grace_s = settings.grace_s if stop_requested.is_set() else 0.0
        await app.stop(grace_s=grace_s)
    return DEVICE_FAILED if has_failed else 0


def read_refused_words(settings: Settings) -> RefusedWords | None:
    """Returns the words that prompts must not have; None if there is no list.

    Raises:
        SettingsError: The file cannot be read, holds no word, or an entry that is none.
    """
    path = settings.refused_words_file
    if path is None:
        return None
    entries = read_lines("refused_words_file", path)
    try:
        if entries:
            return RefusedWords(entries)
        reason = "holds no word"
    except NoWordError as error:
        reason = f"{str(error)!r} has neither letter nor digit"
    message = f"refused_words_file={str(path)!r}: {reason}"
    raise SettingsError(message)


def _facts(settings: Settings) -> ServerFacts:
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return ServerFacts(
        version=version(),
        max_request_bytes=settings.max_request_bytes,
        settings=settings.engine,
        start_time=time.time(),
        library_versions=versions,
    )


def _budget_bytes(settings: Settings) -> int:
    if settings.memory_budget_bytes is not None:
        return settings.memory_budget_bytes
    # Torch takes seconds to import; the server listens meanwhile.
    from latentwire_server.models.device_memory import default_budget_bytes  # noqa: PLC0415

    return default_budget_bytes(settings.device)
