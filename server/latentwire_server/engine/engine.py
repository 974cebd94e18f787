"""The engine's asyncio face: generations in, events out.

Event loop only, but for what says otherwise. Owns the device thread, the encoding pool and one task
that keeps house: deadlines, places in the queue, and forgetting. Knows no gRPC and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from latentwire_server.engine.device.batch_size_probe import compile_for, probe_batch_size
from latentwire_server.engine.device.faults import DeviceBroken, raise_if_broken
from latentwire_server.engine.device.loop import DeviceLoop
from latentwire_server.engine.diffusion.phases import phases_of
from latentwire_server.engine.errors import (
    Cancelled,
    DeviceFailed,
    Draining,
    GenerationError,
    ModelNotFound,
    ModelUnusable,
)
from latentwire_server.engine.events import Accepted
from latentwire_server.engine.handover.channel import Channel
from latentwire_server.engine.handover.device_task import DeviceTask
from latentwire_server.engine.handover.generation import Generation
from latentwire_server.engine.handover.inbox import Inbox
from latentwire_server.engine.handover.stream import GenerationStream
from latentwire_server.engine.policy.estimate import Estimator
from latentwire_server.engine.policy.policy import Group
from latentwire_server.engine.policy.row_budget import DEFAULT_ROWS, RowBudget
from latentwire_server.engine.queue.admission import DRAINING_RETRY_S, Load, refusal
from latentwire_server.engine.queue.housekeeping import Housekeeper
from latentwire_server.engine.queue.register import Register
from latentwire_server.engine.settings import Batching
from latentwire_server.engine.snapshots import EngineStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from latentwire_server.engine.events import ModelLoading
    from latentwire_server.engine.events import Warning as RequestWarning
    from latentwire_server.engine.request import Describe, GenerationRequest
    from latentwire_server.engine.settings import EngineSettings
    from latentwire_server.engine.snapshots import GenerationSnapshot
    from latentwire_server.models.protocol import DiffusionModel, ModelSpec

ResultT = TypeVar("ResultT")

_LOGGER = logging.getLogger(__name__)
_ENCODING_THREADS = 4


class Engine:
    """Draws images on one device, many generations at once."""

    failed: asyncio.Event
    """Set when the device is broken: the process should end with exit code 70."""

    def __init__(
        self,
        models: Mapping[str, DiffusionModel],
        settings: EngineSettings,
        *,
        describe: Describe = lambda *_: None,
    ) -> None:
        self._describe = describe
        self.failed = asyncio.Event()
        self._models = dict(models)
        self._held: set[str] = set()
        """Models that are to go, and take nothing new."""
        self._settings = settings
        self._register = Register()
        self._inbox = Inbox()
        self._row_budget = RowBudget(told=settings.max_rows)
        self._estimator = Estimator(
            row_budget=self._row_budget,
            max_running=settings.max_running,
            is_reproducible=settings.batching is Batching.REPRODUCIBLE,
        )
        self._pool = ThreadPoolExecutor(_ENCODING_THREADS, thread_name_prefix="latentwire-encode")
        self._num_submitted = 0
        self._is_draining = False
        self._has_stopped = asyncio.Event()
        self._housekeeper = Housekeeper(
            self._register,
            estimator=self._estimator,
            settings=settings,
            on_deadline=self._cancel,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._device_loop: DeviceLoop | None = None
        self._thread: threading.Thread | None = None
        self._housekeeping: asyncio.Task[None] | None = None

    def warm_up(self, model: DiffusionModel) -> None:
        """Finds out how many rows pay, and compiles for them; seconds to minutes.

        Any thread, before ``add_model``: nobody else may use the model meanwhile.

        Raises:
            ModelUnusable: it cannot draw one image here.
            DeviceBroken: the device is broken.
        """
        for part in (model, model.refiner):
            if part is not None:
                self._warm_up(part)

    def _warm_up(self, model: DiffusionModel) -> None:
        group = _group_of(model)
        is_reproducible = self._settings.batching is Batching.REPRODUCIBLE
        # The same bytes under any load must be the same after the next start too.
        if not (is_reproducible or self._row_budget.knows(model.info.id)):
            try:
                num_rows = probe_batch_size(model, run=self._on_device)
            except DeviceBroken:
                raise
            except Exception as error:  # Border: the loading thread
                raise_if_broken(error)
                raise ModelUnusable(model.info.id, error) from error
            self._row_budget.learn(group, num_rows=num_rows)
        for num_rows in self._row_budget.sizes(group, is_reproducible=is_reproducible):
            self._on_device(partial(compile_for, model, num_rows=num_rows))

    def add_model(self, model: DiffusionModel) -> None:
        """Makes a loaded model available, and lets those begin that wait for it."""
        self._models[model.info.id] = model
        if self._device_loop is not None:
            self._device_loop.add_model(model)
        self._let_in(model.info.id)

    def fail_model(self, model_id: str, error: GenerationError) -> None:
        """Ends those that wait for a model: it will not come."""
        for generation in self._waiting_for(model_id):
            generation.fail(error)

    def report_loading(self, event: ModelLoading) -> None:
        """Tells those that wait for a model how far it is."""
        for generation in self._waiting_for(event.model):
            generation.publish(event)

    def remove_model(self, model_id: str) -> Future[None]:
        """Lets go of a model of which nothing is in flight: requests wait for it again.

        Returns what is done, or cancelled, once the device thread holds nothing of it any more.
        """
        self._models.pop(model_id, None)
        self._held.discard(model_id)
        device_loop = self._device_loop
        if device_loop is None:
            nothing: Future[None] = Future()
            nothing.set_result(None)
            return nothing
        task = DeviceTask(partial(device_loop.forget_model, model_id))
        self._inbox.put_task(task)
        return task.result

    def hold_model(self, model_id: str) -> None:
        """Makes generations of a loaded model wait from now on: it is to go."""
        self._held.add(model_id)

    def release_model(self, model_id: str) -> None:
        """Lets generations of a model in again, unless it went meanwhile."""
        self._held.discard(model_id)
        if model_id in self._models:
            self._let_in(model_id)

    def num_in_flight(self, model_id: str) -> int:
        """Returns how many generations of a model have not ended."""
        return sum(one.request.model == model_id for one in self._register.active)

    def needs_model(self, model_id: str) -> bool:
        """Returns whether the device has, or is about to have, generations of a loaded model."""
        return self.num_in_flight(model_id) > len(self._waiting_for(model_id))

    def is_model_awaited(self, model_id: str) -> bool:
        """Returns whether generations wait for a model to be loaded."""
        return bool(self._waiting_for(model_id))

    def listen(self, on_change: Callable[[], None]) -> None:
        """Has ``on_change`` called whenever generations came, began or ended."""
        self._housekeeper.listen(on_change)

    async def start(self) -> None:
        """Starts the device thread."""
        self._loop = asyncio.get_running_loop()
        self._device_loop = DeviceLoop(
            self._models,
            self._settings,
            inbox=self._inbox,
            estimator=self._estimator,
            row_budget=self._row_budget,
            pool=self._pool,
            describe=self._describe,
            on_failed=lambda: self._call_soon(self._fail_all),
        )
        self._thread = threading.Thread(
            # A daemon: a device call that never returns must not keep the process alive.
            target=self._run,
            args=(self._device_loop,),
            name="latentwire-device",
            daemon=True,
        )
        self._thread.start()
        self._housekeeping = asyncio.create_task(self._housekeeper.run())
        self._housekeeping.add_done_callback(self._housekeeping_ended)

    def submit(
        self,
        request: GenerationRequest,
        *,
        warnings: Sequence[RequestWarning] = (),
        spec: ModelSpec | None = None,
    ) -> GenerationStream:
        """Gives ``request`` its place and returns its events.

        Args:
            request: what to draw.
            warnings: what ``Accepted`` warns of.
            spec: of the model, for which the generation waits if it is not loaded.

        Raises:
            ModelNotFound: no such model is loaded, and there is no spec.
            DeviceFailed, Draining, DeadlinePassed, QueueFull, DeadlineTooShort: it is refused.
        """
        loop = self._running_loop()
        model = self._models.get(request.model) or spec
        if model is None:
            raise ModelNotFound(name=request.model, known=tuple(self._models))
        generation = self._generation_of(request, model)
        error = self._refusal(generation)
        if error is not None:
            raise error
        channel = Channel(
            loop,
            send_timeout_s=self._settings.send_timeout_s,
            on_close=lambda reason: self._cancel(generation, reason),
        )
        generation.attach(channel)
        generation.publish(Accepted(request=request, warnings=tuple(warnings)))
        self._num_submitted += 1
        self._register.add(generation)
        if not generation.waits_for_model:
            self._inbox.put(generation)
        self._housekeeper.notify()
        return GenerationStream(generation.id, channel=channel, loop=loop)

    def cancel(self, generation_id: str, *, owner: str) -> GenerationSnapshot:
        """Cancels a generation of ``owner``; one that has ended stays as it is.

        Raises:
            GenerationNotFound: the caller has no such generation.
        """
        generation = self._register.find(generation_id, owner=owner)
        self._cancel(generation, Cancelled())
        return generation.snapshot(ahead_count=0)

    def get(self, generation_id: str, *, owner: str) -> GenerationSnapshot:
        """Returns a generation of ``owner`` as it is right now.

        Raises:
            GenerationNotFound: the caller has no such generation.
        """
        return self._snapshot(self._register.find(generation_id, owner=owner))

    def list(self, *, owner: str) -> tuple[GenerationSnapshot, ...]:
        """Returns what ``owner`` has running and queued, in the order in which it is served."""
        register = self._register
        generations = [*register.running, *register.queued, *register.waiting_for_models]
        return tuple(
            self._snapshot(generation)
            for generation in generations
            if generation.request.owner == owner
        )

    def status(self, *, default_model: str = "") -> EngineStatus:
        """Returns the load right now.

        Args:
            default_model: the model that ``max_rows`` is told of; else the first one.
        """
        denoiser = None if self._device_loop is None else self._device_loop.denoiser
        return EngineStatus(
            queued_count=self._num_queued,
            running_count=len(self._register.running),
            is_draining=self._is_draining,
            has_failed=self.failed.is_set(),
            denoiser_call_count=denoiser.num_calls if denoiser else 0,
            denoiser_row_count=denoiser.num_rows if denoiser else 0,
            denoiser_place_count=denoiser.num_places if denoiser else 0,
            max_rows=self._max_rows(default_model),
        )

    def wait_s(self) -> float | None:
        """Returns how long a generation that came now would wait; None: no speed is measured."""
        return self._wait_behind_s(self._register.queued)

    async def drain(self, *, grace_s: float) -> None:
        """Refuses new work, ends what waits, and gives what runs ``grace_s`` to finish."""
        self._is_draining = True
        for generation in (*self._register.queued, *self._register.waiting_for_models):
            generation.fail(Draining(retry_after_s=DRAINING_RETRY_S))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._housekeeper.wait_until_idle()
        self._end_all(Draining(retry_after_s=DRAINING_RETRY_S))

    async def aclose(self) -> None:
        """Ends everything and stops the device thread after the call that it is in."""
        self._is_draining = True
        self._end_all(Draining(retry_after_s=DRAINING_RETRY_S))
        self._inbox.stop()
        if self._thread is not None:
            await self._has_stopped.wait()
            self._thread.join()
            self._thread = None
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            await asyncio.wait([self._housekeeping])
            self._housekeeping = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _max_rows(self, model_id: str) -> int:
        model = self._models.get(model_id) or next(iter(self._models.values()), None)
        if model is None:
            return self._settings.max_rows or DEFAULT_ROWS
        return self._row_budget.of(_group_of(model))

    @property
    def _num_queued(self) -> int:
        return len(self._register.queued) + len(self._register.waiting_for_models)

    def _let_in(self, model_id: str) -> None:
        for generation in self._waiting_for(model_id):
            generation.waits_for_model = False
            self._inbox.put(generation)
        self._housekeeper.notify()

    def _waiting_for(self, model_id: str) -> Sequence[Generation]:
        waiting = self._register.waiting_for_models
        return [one for one in waiting if one.request.model == model_id]

    def _generation_of(self, request: GenerationRequest, model: ModelSpec) -> Generation:
        return Generation(
            request,
            arrival=self._num_submitted,
            phases=[phase.expected_work for phase in phases_of(request, model)],
            on_change=lambda: self._call_soon(self._housekeeper.notify),
            waits_for_model=request.model not in self._models or request.model in self._held,
        )

    def _refusal(self, newcomer: Generation) -> GenerationError | None:
        return refusal(
            newcomer.work_left,
            deadline=newcomer.request.deadline,
            now=time.monotonic(),
            load=Load(
                is_draining=self._is_draining,
                has_failed=self.failed.is_set(),
                running_count=len(self._register.running),
                queued_count=self._num_queued,
                wait_s=lambda: self._wait_s(newcomer),
            ),
            estimator=self._estimator,
            settings=self._settings,
        )

    def _wait_s(self, newcomer: Generation) -> float | None:
        ahead = [one for one in self._register.queued if one.order < newcomer.order]
        return self._wait_behind_s(ahead)

    def _wait_behind_s(self, ahead: Sequence[Generation]) -> float | None:
        return self._estimator.waits_s(
            running=[one.work_left for one in self._register.running],
            queued=[one.work_left for one in ahead],
        )[-1]

    def _snapshot(self, generation: Generation) -> GenerationSnapshot:
        return generation.snapshot(ahead_count=self._register.ahead_count(generation))

    def _cancel(self, generation: Generation, reason: GenerationError) -> None:
        if generation.cancel(reason):
            self._inbox.wake()

    def _end_all(self, error: GenerationError) -> None:
        for generation in self._register.active:
            generation.fail(error)
        self._inbox.wake()

    def _housekeeping_ended(self, task: asyncio.Task[None]) -> None:
        # Without it no deadline is kept and nobody hears of the queue: better to start anew.
        if not task.cancelled() and task.exception() is not None:
            _LOGGER.critical("housekeeping failed", exc_info=task.exception())
            self._fail_all()

    def _fail_all(self) -> None:
        self.failed.set()
        self._end_all(DeviceFailed())

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            message = "the engine is not started"
            raise RuntimeError(message)
        return self._loop

    def _on_device(self, work: Callable[[], ResultT]) -> ResultT:
        """Does work between two ticks of the device thread; at once where there is none yet.

        Loading thread.
        """
        if self._device_loop is None:
            return work()
        task = DeviceTask(work)
        self._inbox.put_task(task)
        return task.result.result()

    def _run(self, device_loop: DeviceLoop) -> None:
        """Is the device thread."""
        try:
            device_loop.run()
        finally:
            self._call_soon(self._has_stopped.set)

    def _call_soon(self, callback: Callable[[], None]) -> None:
        """Calls back on the event loop. Any thread."""
        # A closed event loop means that nobody is left who could care.
        with contextlib.suppress(RuntimeError):
            self._running_loop().call_soon_threadsafe(callback)


def _group_of(model: ModelSpec) -> Group:
    """Returns the group of a picture of the model's own size."""
    defaults = model.info.defaults
    _, height, width = model.latent_shape(width=defaults.width, height=defaults.height)
    return Group(model=model.info.id, height=height, width=width)
