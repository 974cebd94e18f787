"""Loads models on demand within a memory budget, and unloads idle ones to make room.

Event loop only. A load continues even if every caller that waits for it leaves: a library cannot be
stopped in the middle of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from contextlib import aclosing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from latentwire_server.engine.errors import ModelFailed, ModelInUse, ModelNotReady
from latentwire_server.registry.catalogue import ModelState
from latentwire_server.registry.load_progress import LoadProgress
from latentwire_server.registry.loadable_model import ModelLoadError
from latentwire_server.registry.loading_thread import in_loading_thread
from latentwire_server.registry.model_load import ModelLoader
from latentwire_server.registry.model_memory import ModelMemory, NobodyWaitsError
from latentwire_server.settings.files import SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

    from latentwire_server.engine.engine import Engine
    from latentwire_server.engine.events import ModelLoading
    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.protocol import ModelSpec
    from latentwire_server.registry.catalogue import Catalogue
    from latentwire_server.registry.loadable_model import LoadableModel

RETRY_S: Final = 2.0
"""Retry delay sent while a model is temporarily unavailable."""

_logger: Final = logging.getLogger(__name__)


class ModelRegistry:
    """Keeps the models that are in use loaded."""

    def __init__(
        self,
        models: Sequence[LoadableModel],
        *,
        engine: Engine,
        catalogue: Catalogue,
        budget_bytes: Callable[[], int],
        on_change: Callable[[], None],
    ) -> None:
        """Creates the registry; ``start`` loads the first models.

        Args:
            models: The default one first.
            engine: Generates with the loaded models.
            catalogue: Records the state of each model.
            budget_bytes: Returns the most that loaded models may take; called in a thread.
            on_change: Is called after the state of models, or ``is_serving``, has changed.
        """
        self._models = {model.id: model for model in models}
        self._engine = engine
        self._catalogue = catalogue
        self._on_change = on_change
        self._memory = ModelMemory(engine, budget_bytes=budget_bytes, on_unloaded=self._unloaded)
        self._progress = LoadProgress(on_report=engine.models.report_loading)
        self._loader = ModelLoader(engine, catalogue, self._memory, self._progress)
        self._loads: dict[str, asyncio.Task[ModelFailed | None]] = {}
        self._num_asking: Counter[str] = Counter()
        """How many callers wait for a model without having a generation of it."""
        self._failures: dict[str, str] = {}
        """Why models could not be loaded, in words for the operator."""
        self._has_started = False
        for model in models:
            if model.preload:
                catalogue.set_loading(model.id)

    async def start(self) -> None:
        """Reads every model's configuration, and loads the models that are preloaded.

        Raises:
            SettingsError: No model is left that can be served.
        """
        for model in self._models.values():
            await self._read_spec(model)
        for model in self._models.values():
            if model.preload and self._catalogue.state(model.id) is not ModelState.READY:
                with self._asking(model.id):
                    await self._begin(model.id)
        if self._engine.failed.is_set():
            return
        if self._have_all_failed:
            raise SettingsError("; ".join(self._failures.values()))
        self._has_started = True
        self._on_change()

    @property
    def is_serving(self) -> bool:
        """Whether the first models are loaded, and any model can be used."""
        return self._has_started and not self._have_all_failed

    async def spec(self, name: str, *, may_load: bool) -> tuple[ModelSpec, ModelInfo]:
        """Returns what a request for a model is checked against.

        Downloads the configuration of a model on the hub. A model whose configuration is not enough
        is loaded.

        Raises:
            ModelNotFound: There is no such model.
            ModelFailed: It could not be loaded.
            ModelNotReady: It would have to be loaded, and ``may_load`` is false.
        """
        id_ = self._catalogue.id_of(name)
        if self._catalogue.state(id_) is ModelState.FAILED:
            raise ModelFailed(name=id_, reason=self._catalogue.snapshot(id_).failure)
        found = self._catalogue.spec(id_)
        if found is None:
            if not (may_load and self._has_started):
                raise ModelNotReady(name=id_, retry_after_s=RETRY_S)
            found = await self._fetch_spec(id_)
        if found is None:
            with self._asking(id_):
                error = await asyncio.shield(self._begin(id_))
            found = self._catalogue.spec(id_)
            if error is not None or found is None:
                raise error or ModelNotReady(name=id_, retry_after_s=RETRY_S)
        return found

    def want(self, model_id: str) -> None:
        """Loads the model of a generation that was submitted, unless it is loaded."""
        self._memory.used(model_id)
        if self._catalogue.state(model_id) in (ModelState.UNLOADED, ModelState.FAILED):
            self._ensure(model_id)
        else:
            self._progress.repeat(model_id)

    def used(self, model_id: str) -> None:
        """Notes that a generation of the model has ended."""
        self._memory.used(model_id)

    async def load(self, name: str) -> AsyncGenerator[ModelLoading]:
        """Loads a model, also one that failed before, and yields its progress.

        Raises:
            ModelNotFound: There is no such model.
            ModelFailed: It cannot be loaded.
        """
        id_ = self._catalogue.id_of(name)
        self._memory.used(id_)
        if self._catalogue.state(id_) is ModelState.READY:
            return
        load = self._begin(id_)
        with self._asking(id_):
            async with aclosing(self._progress.follow(id_, load)) as reports:
                async for progress in reports:
                    yield progress
        error = load.result()
        if error is not None:
            raise error

    async def unload(self, name: str) -> None:
        """Unloads a model. The failure of one that could not be loaded is forgotten.

        Raises:
            ModelNotFound: There is no such model.
            ModelInUse: Generations need it.
            ModelNotReady: It is being loaded.
        """
        id_ = self._catalogue.id_of(name)
        if id_ in self._loads or self._catalogue.state(id_) is ModelState.LOADING:
            raise ModelNotReady(name=id_, retry_after_s=RETRY_S)
        num_in_flight = self._engine.models.num_in_flight(id_)
        if num_in_flight:
            raise ModelInUse(name=id_, generation_count=num_in_flight, retry_after_s=RETRY_S)
        await self._memory.drop(id_)

    async def aclose(self) -> None:
        """Abandons every load."""
        loads = list(self._loads.values())
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    @property
    def _have_all_failed(self) -> bool:
        return all(self._catalogue.state(id_) is ModelState.FAILED for id_ in self._models)

    def _begin(self, model_id: str) -> asyncio.Task[ModelFailed | None]:
        """Returns the load of a model, which returns its error; starts it if there is none."""
        self._ensure(model_id)
        return self._loads[model_id]

    def _ensure(self, model_id: str) -> None:
        if model_id not in self._loads:
            self._catalogue.set_loading(model_id)
            self._loads[model_id] = asyncio.create_task(self._load(self._models[model_id]))
            self._progress.begin(model_id)

    @contextmanager
    def _asking(self, model_id: str) -> Iterator[None]:
        self._num_asking[model_id] += 1
        try:
            yield
        finally:
            self._num_asking[model_id] -= 1
            self._memory.look_again()

    def _is_wanted(self, model_id: str) -> bool:
        return self._num_asking[model_id] > 0 or self._engine.models.is_awaited(model_id)

    async def _load(self, model: LoadableModel) -> ModelFailed | None:
        id_, failure = model.id, None
        try:
            await self._loader.load(model, is_wanted=partial(self._is_wanted, id_))
            self._failures.pop(id_, None)
        except NobodyWaitsError:
            self._catalogue.set_unloaded(id_)
        except ModelLoadError as error:
            # A new one: the traceback of `error` keeps parts of the model in memory.
            failure = self._fail(id_, error)
            self._engine.models.fail(id_, failure)
        # Before anything else runs: the next caller begins another load.
        del self._loads[id_]
        self._progress.end(id_)
        self._on_change()
        return failure

    def _unloaded(self, model_id: str) -> None:
        self._catalogue.set_unloaded(model_id)
        if self._engine.models.is_awaited(model_id):
            # Generations that arrived while it was about to be unloaded are next.
            self._ensure(model_id)
        self._on_change()

    async def _read_spec(self, model: LoadableModel) -> None:
        try:
            spec = await in_loading_thread(model.spec)
            if spec is not None:
                self._catalogue.set_spec(model.id, spec)
        except ModelLoadError as error:
            # The load that follows reports the problem in more detail.
            if not model.preload:
                self._fail(model.id, error)

    async def _fetch_spec(self, model_id: str) -> tuple[ModelSpec, ModelInfo] | None:
        # The load that follows reports the problem.
        with contextlib.suppress(ModelLoadError):
            spec = await in_loading_thread(partial(self._models[model_id].spec, fetch=True))
            if spec is not None and self._catalogue.spec(model_id) is None:
                self._catalogue.set_spec(model_id, spec)
        return self._catalogue.spec(model_id)

    def _fail(self, model_id: str, error: ModelLoadError) -> ModelFailed:
        """Records a failure: the full text for the operator, a safe reason for callers."""
        self._failures[model_id] = str(error)
        self._catalogue.set_failed(model_id, error.reason)
        _logger.error("model failed model=%s reason=%s", model_id, error)
        return ModelFailed(name=model_id, reason=error.reason)
