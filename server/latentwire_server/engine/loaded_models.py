"""The loaded models, and the generations that wait for one that is not loaded.

Event loop only, except ``warm_up``, which runs on the loading thread. The device loop keeps its own
table of models: a model is removed there by a device task, so that the device thread holds nothing
of it once that is done.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from latentwire_server.engine.device.batch_size_probe import compile_for, probe_batch_size
from latentwire_server.engine.device.faults import DeviceBroken, raise_if_broken
from latentwire_server.engine.errors import ModelUnusable
from latentwire_server.engine.policy.policy import Group
from latentwire_server.engine.policy.row_budget import DEFAULT_ROWS
from latentwire_server.engine.settings import Batching

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from latentwire_server.engine.device.loop import DeviceLoop
    from latentwire_server.engine.errors import GenerationError
    from latentwire_server.engine.events import ModelLoading
    from latentwire_server.engine.handover.generation import Generation
    from latentwire_server.engine.handover.inbox import Inbox
    from latentwire_server.engine.policy.row_budget import RowBudget
    from latentwire_server.engine.queue.register import Register
    from latentwire_server.engine.settings import EngineSettings
    from latentwire_server.models.protocol import DiffusionModel

ResultT = TypeVar("ResultT")


class LoadedModels:
    """Adds and removes models while generations run, queue, or wait for a model."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        register: Register,
        inbox: Inbox,
        row_budget: RowBudget,
        device_loop: DeviceLoop,
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._register = register
        self._inbox = inbox
        self._row_budget = row_budget
        self._device_loop = device_loop
        self._on_change = on_change
        self._models: dict[str, DiffusionModel] = {}
        self._held: set[str] = set()
        """Ids of models that are about to be unloaded."""

    def warm_up(self, model: DiffusionModel) -> None:
        """Probes the batch size of a model and compiles it; takes seconds to minutes.

        Every call of the model runs on the device thread, between two ticks. Loading thread, before
        ``add`` and after the engine's start: nothing else may use the model meanwhile.

        Raises:
            ModelUnusable: The model cannot generate one image on this device.
            DeviceBroken: The device is broken.
        """
        is_reproducible = self._settings.batching is Batching.REPRODUCIBLE
        for part in (model, model.refiner):
            if part is None:
                continue
            group = _native_group(part)
            # Reproducible bytes must not depend on what was measured at this start of the server.
            if not is_reproducible and self._row_budget.needs_probe(part.info.id):
                try:
                    num_rows = probe_batch_size(part, run=self._run_on_device)
                except DeviceBroken:
                    raise
                except Exception as error:  # Border: the loading thread
                    raise_if_broken(error)
                    raise ModelUnusable(part.info.id, error) from error
                self._row_budget.set_probed(group, num_rows=num_rows)
            for num_rows in self._row_budget.sizes(group, is_reproducible=is_reproducible):
                self._run_on_device(partial(compile_for, part, num_rows=num_rows))

    def add(self, model: DiffusionModel) -> None:
        """Makes a loaded model available and queues the generations that wait for it."""
        self._models[model.info.id] = model
        self._device_loop.add_model(model)
        self._queue_waiting(model.info.id)

    def remove(self, model_id: str) -> Future[None]:
        """Removes a model that no generation needs; new generations wait for it to be loaded again.

        The result is set, or cancelled, once the device thread holds nothing of the model.
        """
        self._models.pop(model_id, None)
        self._held.discard(model_id)
        return self._inbox.put_task(partial(self._device_loop.forget_model, model_id))

    def hold(self, model_id: str) -> None:
        """Makes new generations of a model wait, because it is about to be unloaded."""
        self._held.add(model_id)

    def release(self, model_id: str) -> None:
        """Ends ``hold``; queues the generations that wait, unless the model has been removed."""
        self._held.discard(model_id)
        if model_id in self._models:
            self._queue_waiting(model_id)

    def is_available(self, model_id: str) -> bool:
        """Returns whether a new generation of a model can be queued at once."""
        return model_id in self._models and model_id not in self._held

    def fail(self, model_id: str, error: GenerationError) -> None:
        """Fails the generations that wait for a model, because it cannot be loaded."""
        for generation in self._waiting_for(model_id):
            generation.fail(error)

    def report_loading(self, event: ModelLoading) -> None:
        """Publishes the progress of loading to the generations that wait for the model."""
        for generation in self._waiting_for(event.model):
            generation.publish(event)

    def num_in_flight(self, model_id: str) -> int:
        """Returns how many generations of a model have not ended."""
        return sum(one.request.model == model_id for one in self._register.active)

    def is_needed(self, model_id: str) -> bool:
        """Returns whether generations of a model are queued or running on the device."""
        return self.num_in_flight(model_id) > len(self._waiting_for(model_id))

    def is_awaited(self, model_id: str) -> bool:
        """Returns whether generations wait for a model to be loaded."""
        return bool(self._waiting_for(model_id))

    def max_rows(self, model_id: str) -> int:
        """Returns the most rows of a denoiser call at a model's native size.

        For a model that is not loaded, of the first model that is.
        """
        model = self._models.get(model_id) or next(iter(self._models.values()), None)
        if model is None:
            return self._settings.max_rows or DEFAULT_ROWS
        return self._row_budget.of(_native_group(model))

    def _queue_waiting(self, model_id: str) -> None:
        for generation in self._waiting_for(model_id):
            generation.waits_for_model = False
            self._inbox.put(generation)
        self._on_change()

    def _waiting_for(self, model_id: str) -> list[Generation]:
        waiting = self._register.waiting_for_models
        return [one for one in waiting if one.request.model == model_id]

    def _run_on_device(self, work: Callable[[], ResultT]) -> ResultT:
        return self._inbox.put_task(work).result()


def _native_group(model: DiffusionModel) -> Group:
    """Returns the group of images of the model's native size."""
    defaults = model.info.defaults
    _, height, width = model.latent_shape(width=defaults.width, height=defaults.height)
    return Group(model=model.info.id, height=height, width=width)
