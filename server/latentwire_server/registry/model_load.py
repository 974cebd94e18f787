"""Loads one model: measures it, makes room for it, reads its weights, and warms it up.

Event loop only; the work itself has a thread of its own, beside the device thread. Does not know
which callers wait for the model.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Final

from latentwire_server.engine.device.faults import DeviceBroken
from latentwire_server.engine.errors import ModelUnusable
from latentwire_server.registry.loadable_model import ModelLoadError
from latentwire_server.registry.loading_thread import in_loading_thread
from latentwire_server.registry.memory_plan import TooLargeError
from latentwire_server.registry.model_memory import NobodyWaitsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentwire_server.engine.engine import Engine
    from latentwire_server.models.info import ModelSize
    from latentwire_server.models.protocol import DiffusionModel
    from latentwire_server.registry.catalogue import Catalogue
    from latentwire_server.registry.load_progress import LoadProgress
    from latentwire_server.registry.loadable_model import LoadableModel
    from latentwire_server.registry.model_memory import ModelMemory

_logger: Final = logging.getLogger(__name__)


class ModelLoader:
    """Loads models into the engine, one at a time."""

    def __init__(
        self, engine: Engine, catalogue: Catalogue, memory: ModelMemory, progress: LoadProgress
    ) -> None:
        self._engine = engine
        self._catalogue = catalogue
        self._memory = memory
        self._progress = progress
        self._turn = asyncio.Lock()
        self._largest: dict[str, int] = {}
        """The memory that each model took in its last load, before any retry without compiling."""

    async def load(self, model: LoadableModel, *, is_wanted: Callable[[], bool]) -> None:
        """Loads a model and hands it to the engine.

        Raises:
            ModelLoadError: It cannot be loaded.
            NobodyWaitsError: There is no room at present, and ``is_wanted`` returns False.
        """
        async with self._turn:
            try:
                await self._load(model, is_wanted=is_wanted)
            except (ModelLoadError, NobodyWaitsError):
                raise
            except ModelUnusable as error:
                raise ModelLoadError(str(error), reason=error.reason) from None
            except TooLargeError as error:
                budget = f"memory_budget_bytes is {error.budget_bytes}"
                reason = f"it takes {error.size_bytes} bytes; {budget}"
            except DeviceBroken as broken:
                _logger.critical("device failed model=%s error_id=%s", model.id, broken)
                self._engine.failed.set()
                reason = "the device is broken"
            except Exception:  # Border: the loading thread
                error_id = uuid.uuid4().hex[:12]
                _logger.exception("loading failed model=%s error_id=%s", model.id, error_id)
                reason = f"it cannot be loaded; the server's log says more under {error_id}"
            else:
                return
            raise ModelLoadError(reason, reason=reason)

    async def _load(self, wanted: LoadableModel, *, is_wanted: Callable[[], bool]) -> None:
        started, id_ = time.monotonic(), wanted.id
        size = await in_loading_thread(partial(wanted.measure, self._progress.reporter(id_)))
        self._progress.report(id_, 0, size.weights_bytes)
        compiles = await self._make_room(wanted, size, is_wanted=is_wanted)
        model, size_bytes = await self._warmed_up(wanted, compiles=compiles)
        self._largest[id_] = size_bytes
        is_too_large = await self._is_too_large(size_bytes)
        if is_too_large and compiles and wanted.may_run_uncompiled:
            # It was compiled into more than expected.
            del model
            model, size_bytes = await self._warmed_up(wanted, compiles=False)
        await self._memory.add(id_, size_bytes=size_bytes)
        self._catalogue.set_ready(id_, model, memory_bytes=size_bytes)
        self._engine.models.add(model)
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
            time.monotonic() - started,
        )

    async def _make_room(
        self, wanted: LoadableModel, size: ModelSize, *, is_wanted: Callable[[], bool]
    ) -> bool:
        """Makes room for a model, and returns whether that is enough to compile its denoiser."""
        compiles = True
        # More rows than expected may have paid, and so more of them been compiled for.
        size_bytes = max(size.total_bytes, self._largest.get(wanted.id, 0))
        if await self._is_too_large(size_bytes) and wanted.may_run_uncompiled:
            compiles, size_bytes = False, size.weights_bytes
            _logger.info("denoiser is not compiled, no room for it model=%s", wanted.id)
        await self._memory.make_room(size_bytes, is_wanted=is_wanted)
        return compiles

    async def _warmed_up(
        self, wanted: LoadableModel, *, compiles: bool
    ) -> tuple[DiffusionModel, int]:
        """Returns a model that is ready to generate, and the memory that it takes."""
        load = partial(wanted.load, self._progress.reporter(wanted.id), compiles=compiles)
        model = await in_loading_thread(load)
        # Before anything that takes minutes.
        self._catalogue.check(model, model_id=wanted.id)
        await in_loading_thread(partial(self._engine.models.warm_up, model))
        return model, await asyncio.to_thread(lambda: model.memory_bytes)

    async def _is_too_large(self, size_bytes: int) -> bool:
        return size_bytes > await self._memory.budget_bytes()
