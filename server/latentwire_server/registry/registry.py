"""Loads and unloads the models: on demand, within a memory budget, one at a time.

Event loop only; a load itself has a thread of its own, beside the device thread. A load that has
begun goes on when those who wait for it leave: a library in the middle of it cannot be stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from contextlib import aclosing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from latentwire_server.convert.resources import model_name
from latentwire_server.engine.device.faults import DeviceBroken
from latentwire_server.engine.errors import (
    ModelFailed,
    ModelInUse,
    ModelNotReady,
    ModelUnusable,
)
from latentwire_server.registry.catalogue import LimitConflictError, ModelState
from latentwire_server.registry.load_progress import LoadProgress
from latentwire_server.registry.loadable_model import ModelLoadError
from latentwire_server.registry.loading_thread import in_loading_thread
from latentwire_server.registry.memory_plan import TooLargeError
from latentwire_server.registry.model_memory import ModelMemory, NobodyWaitsError
from latentwire_server.settings.files import SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

    from latentwire_server.engine.engine import Engine
    from latentwire_server.engine.events import ModelLoading
    from latentwire_server.models.info import ModelInfo, ModelSize
    from latentwire_server.models.protocol import DiffusionModel, ModelSpec
    from latentwire_server.registry.catalogue import Catalogue
    from latentwire_server.registry.loadable_model import LoadableModel
    from latentwire_server.rpc.health import Health

RETRY_S: Final = 2.0
"""What a caller is told who asks for a model while that cannot be had for a moment."""

_logger: Final = logging.getLogger(__name__)


class ModelRegistry:
    """Brings models in when they are wanted, and sends away those that are not."""

    def __init__(
        self,
        models: Sequence[LoadableModel],
        *,
        engine: Engine,
        catalogue: Catalogue,
        health: Health,
        budget_bytes: Callable[[], int],
    ) -> None:
        """Takes what is served, and who hears of it.

        Args:
            models: the default one first.
            engine: draws with them.
            catalogue: tells about them.
            health: tells probes.
            budget_bytes: returns the most that loaded models may take; asked in a thread.
        """
        self._models = {model.id: model for model in models}
        self._engine = engine
        self._catalogue = catalogue
        self._health = health
        self._memory = ModelMemory(engine, budget_bytes=budget_bytes, on_unloaded=self._unloaded)
        self._turn = asyncio.Lock()
        self._loads: dict[str, asyncio.Task[ModelFailed | None]] = {}
        self._progress = LoadProgress(on_report=engine.report_loading)
        self._num_asking: Counter[str] = Counter()
        """How many wait for a model without a generation of it."""
        self._largest: dict[str, int] = {}
        """What models took when they were loaded, as it was first tried."""
        self._has_started = False
        self.failures: dict[str, str] = {}
        """Why models could not be loaded, in the operator's words."""
        for model in models:
            if model.preload:
                catalogue.loading(model.id)

    async def start(self) -> None:
        """Reads what can be known of every model, and loads those that are to be there first.

        Raises:
            SettingsError: no model is left that can be served.
        """
        for model in self._models.values():
            await self._read_spec(model)
        for model in self._models.values():
            if model.preload and self._catalogue.state(model.id) is not ModelState.READY:
                with self._asking(model.id):
                    await self._begin(model.id)
        if self._engine.failed.is_set():
            return
        if all(self._catalogue.state(id_) is ModelState.FAILED for id_ in self._models):
            raise SettingsError("; ".join(self.failures.values()))
        self._has_started = True
        self._tell_health()

    async def known(self, name: str, *, may_load: bool) -> tuple[ModelSpec, ModelInfo]:
        """Returns what a request for a model is checked against.

        The configuration of a model on the hub is downloaded for it. Where that does not tell, this
        takes as long as to load the model.

        Raises:
            ModelNotFound: there is none.
            ModelFailed: it could not be loaded.
            ModelNotReady: nothing is known of it yet, and it may not be loaded for this.
        """
        id_ = self._catalogue.id_of(name)
        if self._catalogue.state(id_) is ModelState.FAILED:
            raise self._failure(id_)
        known = self._catalogue.known(id_)
        if known is None:
            if not (may_load and self._has_started):
                raise ModelNotReady(name=id_, retry_after_s=RETRY_S)
            known = await self._fetched(id_)
        if known is None:
            with self._asking(id_):
                error = await asyncio.shield(self._begin(id_))
            known = self._catalogue.known(id_)
            if error is not None or known is None:
                raise error or ModelNotReady(name=id_, retry_after_s=RETRY_S)
        return known

    def want(self, model_id: str) -> None:
        """Says that a generation was submitted: its model is loaded if it is not."""
        self._memory.used(model_id)
        if self._catalogue.state(model_id) in (ModelState.UNLOADED, ModelState.FAILED):
            self._ensure(model_id)
        else:
            self._progress.repeat(model_id)

    def used(self, model_id: str) -> None:
        """Says that a generation has ended."""
        self._memory.used(model_id)

    async def load(self, name: str) -> AsyncGenerator[ModelLoading]:
        """Loads a model, again if that failed before, and yields how far it is.

        Raises:
            ModelNotFound: there is none.
            ModelFailed: it cannot be loaded.
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
        """Unloads a model; one that is not loaded stays so, and a failure is forgotten.

        Raises:
            ModelNotFound: there is none.
            ModelInUse: generations need it.
            ModelNotReady: it is being loaded.
        """
        id_ = self._catalogue.id_of(name)
        if id_ in self._loads or self._catalogue.state(id_) is ModelState.LOADING:
            raise ModelNotReady(name=id_, retry_after_s=RETRY_S)
        num_in_flight = self._engine.num_in_flight(id_)
        if num_in_flight:
            raise ModelInUse(name=id_, generation_count=num_in_flight, retry_after_s=RETRY_S)
        await self._memory.drop(id_)

    async def aclose(self) -> None:
        """Waits for no load any more."""
        loads = list(self._loads.values())
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    def _begin(self, model_id: str) -> asyncio.Task[ModelFailed | None]:
        """Returns the model's load, which comes to what prevented it; it begins if it has not."""
        self._ensure(model_id)
        return self._loads[model_id]

    def _ensure(self, model_id: str) -> None:
        if model_id not in self._loads:
            self._catalogue.loading(model_id)
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
        return self._num_asking[model_id] > 0 or self._engine.is_model_awaited(model_id)

    async def _load(self, wanted: LoadableModel) -> ModelFailed | None:
        id_, error = wanted.id, None
        async with self._turn:
            try:
                await self._bring_in(wanted)
            except NobodyWaitsError:
                self._catalogue.unloaded(id_)
            except ModelFailed as raised:
                # A kept traceback keeps what was loaded of it.
                error = raised.with_traceback(None)
                error.__context__ = None
                self._fail(error)
                self._engine.fail_model(id_, error)
        # Before anything else runs: whoever comes now begins another one.
        del self._loads[id_]
        self._progress.end(id_)
        self._tell_health()
        return error

    async def _bring_in(self, wanted: LoadableModel) -> None:
        started, id_ = time.monotonic(), wanted.id
        try:
            reporter = self._progress.reporter(id_)
            size = await in_loading_thread(partial(wanted.measure, reporter))
            self._progress.report(id_, 0, size.weights_bytes)
            compiles = await self._make_room(wanted, size)
            model, size_bytes = await self._loaded(wanted, compiles=compiles)
            self._largest[id_] = size_bytes
            is_too_much = await self._is_too_much(size_bytes)
            if is_too_much and compiles and wanted.may_run_uncompiled:
                # It was compiled into more than expected.
                del model
                model, size_bytes = await self._loaded(wanted, compiles=False)
            await self._memory.add(id_, size_bytes=size_bytes)
        except (ModelFailed, NobodyWaitsError):
            raise
        except TooLargeError as error:
            raise ModelFailed(name=id_, reason=_too_large(error)) from None
        except DeviceBroken as broken:
            _logger.critical("device failed model=%s error_id=%s", id_, broken)
            self._engine.failed.set()
            raise ModelFailed(name=id_, reason="the device is broken") from None
        except (LimitConflictError, ModelLoadError, ModelUnusable) as error:
            raise self._failed(id_, error) from None
        except Exception:  # Border: the loading thread
            error_id = uuid.uuid4().hex[:12]
            _logger.exception("loading failed model=%s error_id=%s", id_, error_id)
            reason = f"it cannot be loaded; the server's log says more under {error_id}"
            raise ModelFailed(name=id_, reason=reason) from None
        self.failures.pop(id_, None)
        self._catalogue.ready(id_, model, memory_bytes=size_bytes)
        self._engine.add_model(model)
        load_s = time.monotonic() - started
        self._log_ready(model, id_=id_, size_bytes=size_bytes, load_s=load_s)

    async def _make_room(self, wanted: LoadableModel, size: ModelSize) -> bool:
        """Makes room for a model, and returns whether its denoiser may be compiled in it.

        Raises:
            TooLargeError: nothing makes enough.
        """
        compiles = True
        # More rows than expected may have paid, and so more of them been compiled for.
        size_bytes = max(size.total_bytes, self._largest.get(wanted.id, 0))
        if await self._is_too_much(size_bytes) and wanted.may_run_uncompiled:
            compiles, size_bytes = False, size.weights_bytes
            _logger.info("denoiser is not compiled, no room for it model=%s", wanted.id)
        is_wanted = partial(self._is_wanted, wanted.id)
        await self._memory.make_room(size_bytes, is_wanted=is_wanted)
        return compiles

    async def _loaded(self, wanted: LoadableModel, *, compiles: bool) -> tuple[DiffusionModel, int]:
        """Returns a model that is ready to draw, and what it takes."""
        load = partial(wanted.load, self._progress.reporter(wanted.id), compiles=compiles)
        model = await in_loading_thread(load)
        # Before anything that takes minutes.
        self._catalogue.check(model, model_id=wanted.id)
        await in_loading_thread(partial(self._engine.warm_up, model))
        return model, await asyncio.to_thread(lambda: model.memory_bytes)

    async def _is_too_much(self, size_bytes: int) -> bool:
        return size_bytes > await self._memory.budget_bytes()

    def _unloaded(self, model_id: str) -> None:
        self._catalogue.unloaded(model_id)
        if self._engine.is_model_awaited(model_id):
            # By those who came when it was to go already: they are next.
            self._ensure(model_id)
        self._tell_health()

    async def _read_spec(self, model: LoadableModel) -> None:
        failure = None
        try:
            spec = await in_loading_thread(model.spec)
            if spec is not None:
                self._catalogue.check(spec, model_id=model.id)
                self._catalogue.set_spec(model.id, spec)
        except (LimitConflictError, ModelLoadError) as error:
            failure = self._failed(model.id, error)
        # Loading tells more of what is wrong, where it is about to be tried.
        if failure is not None and not model.preload:
            self._fail(failure)

    async def _fetched(self, model_id: str) -> tuple[ModelSpec, ModelInfo] | None:
        """Returns what a model's configuration tells, once it is downloaded."""
        # Loading tells what is wrong.
        with contextlib.suppress(LimitConflictError, ModelLoadError):
            spec = await in_loading_thread(partial(self._models[model_id].spec, fetch=True))
            known = self._catalogue.known(model_id)
            if spec is None or known is not None:
                return known
            self._catalogue.check(spec, model_id=model_id)
            self._catalogue.set_spec(model_id, spec)
        return self._catalogue.known(model_id)

    def _fail(self, failure: ModelFailed) -> None:
        told = self.failures.setdefault(failure.name, failure.reason)
        self._catalogue.failed(failure.name, failure.reason)
        _logger.error("model failed model=%s reason=%s", failure.name, told)

    def _failed(
        self, model_id: str, error: LimitConflictError | ModelLoadError | ModelUnusable
    ) -> ModelFailed:
        """Keeps what the operator is told, and returns what callers are."""
        self.failures[model_id] = str(error)
        reason = str(error) if isinstance(error, LimitConflictError) else error.reason
        return ModelFailed(name=model_id, reason=reason)

    def _failure(self, model_id: str) -> ModelFailed:
        return ModelFailed(name=model_id, reason=self._catalogue.failure(model_id))

    def _tell_health(self) -> None:
        states = {id_: self._catalogue.state(id_) for id_ in self._models}
        for id_, state in states.items():
            self._health.model(model_name(id_), is_ready=state is ModelState.READY)
        is_of_use = any(state is not ModelState.FAILED for state in states.values())
        self._health.services(are_ready=self._has_started and is_of_use)

    def _log_ready(
        self, model: DiffusionModel, *, id_: str, size_bytes: int, load_s: float
    ) -> None:
        _logger.info(
            "loaded model=%s device=%s dtype=%s backend=%s compiled_shapes=%d max_rows=%d"
            " safety_checker=%s size_bytes=%d load_s=%.1f",
            id_,
            model.device_name,
            model.dtype_name,
            model.backend_name,
            len(model.compiled_shapes),
            self._engine.status(default_model=id_).max_rows,
            "no" if model.safety_checker is None else "yes",
            size_bytes,
            load_s,
        )


def _too_large(error: TooLargeError) -> str:
    return f"it takes {error.size_bytes} bytes; memory_budget_bytes is {error.budget_bytes}"
