"""The engine's asyncio face: it takes generation requests and returns their events.

Event loop only, except where noted. Owns the device thread, the pool that encodes image files, and
the housekeeping task. Knows no gRPC and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from latentwire_server.engine.device.finishing import Finisher
from latentwire_server.engine.device.loop import DeviceLoop
from latentwire_server.engine.diffusion.phases import phases_of
from latentwire_server.engine.errors import Cancelled, DeviceFailed, Draining, GenerationError
from latentwire_server.engine.events import Accepted
from latentwire_server.engine.handover.channel import Channel
from latentwire_server.engine.handover.generation import Generation
from latentwire_server.engine.handover.inbox import Inbox
from latentwire_server.engine.handover.stream import GenerationStream
from latentwire_server.engine.loaded_models import LoadedModels
from latentwire_server.engine.policy.estimate import Estimator
from latentwire_server.engine.policy.row_budget import RowBudget
from latentwire_server.engine.queue.admission import DRAINING_RETRY_S, Load, refusal
from latentwire_server.engine.queue.housekeeping import Housekeeper
from latentwire_server.engine.queue.register import Register
from latentwire_server.engine.settings import Batching
from latentwire_server.engine.snapshots import EngineStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latentwire_server.engine.events import Warning as RequestWarning
    from latentwire_server.engine.request import Describe, GenerationRequest
    from latentwire_server.engine.settings import EngineSettings
    from latentwire_server.engine.snapshots import GenerationSnapshot
    from latentwire_server.models.protocol import ModelSpec

_LOGGER = logging.getLogger(__name__)
_ENCODING_THREADS = 4


class Engine:
    """Runs many generations at once on one device."""

    failed: asyncio.Event
    """Set when the device is broken: the process should end with exit code 70."""
    models: LoadedModels
    """The models that generations can use."""

    def __init__(self, settings: EngineSettings, *, describe: Describe = lambda *_: None) -> None:
        self.failed = asyncio.Event()
        self._settings = settings
        self._register = Register()
        self._inbox = Inbox()
        row_budget = RowBudget(settings.max_rows)
        self._estimator = Estimator(
            row_budget=row_budget,
            max_running=settings.max_running,
            is_reproducible=settings.batching is Batching.REPRODUCIBLE,
        )
        self._pool = ThreadPoolExecutor(_ENCODING_THREADS, thread_name_prefix="latentwire-encode")
        self._device_loop = DeviceLoop(
            settings,
            inbox=self._inbox,
            estimator=self._estimator,
            row_budget=row_budget,
            finisher=Finisher(
                pool=self._pool,
                estimator=self._estimator,
                mask_feather=settings.mask_feather,
                describe=describe,
            ),
            on_failed=lambda: self._call_soon(self._fail_all),
        )
        self._housekeeper = Housekeeper(
            self._register,
            estimator=self._estimator,
            settings=settings,
            on_deadline=self._cancel,
        )
        self.models = LoadedModels(
            settings,
            register=self._register,
            inbox=self._inbox,
            row_budget=row_budget,
            device_loop=self._device_loop,
            on_change=self._housekeeper.notify,
        )
        self._num_submitted = 0
        self._is_draining = False
        self._has_stopped = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._housekeeping: asyncio.Task[None] | None = None

    def listen(self, on_change: Callable[[], None]) -> None:
        """Registers a callback for whenever generations are submitted, start or end."""
        self._housekeeper.listen(on_change)

    async def start(self) -> None:
        """Starts the device thread and the housekeeping task."""
        self._loop = asyncio.get_running_loop()
        # A daemon: a device call that never returns must not keep the process alive.
        self._thread = threading.Thread(
            target=self._run_device_thread, name="latentwire-device", daemon=True
        )
        self._thread.start()
        self._housekeeping = asyncio.create_task(self._housekeeper.run())
        self._housekeeping.add_done_callback(self._housekeeping_ended)

    def submit(
        self,
        request: GenerationRequest,
        *,
        spec: ModelSpec,
        warnings: Sequence[RequestWarning] = (),
    ) -> GenerationStream:
        """Queues a generation and returns its events.

        Args:
            request: The request, checked and complete.
            spec: The spec of its model; the generation waits while the model is not loaded.
            warnings: The warnings of ``Accepted``.

        Raises:
            DeviceFailed, Draining, DeadlinePassed, QueueFull, DeadlineTooShort: It is refused.
        """
        loop = self._running_loop()
        generation = Generation(
            request,
            arrival=self._num_submitted,
            phases=[phase.expected_work for phase in phases_of(request, spec)],
            on_change=lambda: self._call_soon(self._housekeeper.notify),
            waits_for_model=not self.models.is_available(request.model),
        )
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
            GenerationNotFound: ``owner`` has no such generation.
        """
        generation = self._register.find(generation_id, owner=owner)
        self._cancel(generation, Cancelled())
        return generation.snapshot(ahead_count=0)

    def get(self, generation_id: str, *, owner: str) -> GenerationSnapshot:
        """Returns the current state of a generation of ``owner``.

        Raises:
            GenerationNotFound: ``owner`` has no such generation.
        """
        return self._snapshot(self._register.find(generation_id, owner=owner))

    def list(self, *, owner: str) -> tuple[GenerationSnapshot, ...]:
        """Returns the generations of ``owner`` that run or wait, in the order of service."""
        register = self._register
        generations = [*register.running, *register.queued, *register.waiting_for_models]
        return tuple(self._snapshot(one) for one in generations if one.request.owner == owner)

    def status(self, *, default_model: str = "") -> EngineStatus:
        """Returns the current load.

        Args:
            default_model: The model whose ``max_rows`` is reported, or the first one.
        """
        denoiser = self._device_loop.denoiser
        return EngineStatus(
            queued_count=self._num_queued,
            running_count=len(self._register.running),
            is_draining=self._is_draining,
            has_failed=self.failed.is_set(),
            denoiser_call_count=denoiser.num_calls,
            denoiser_row_count=denoiser.num_rows,
            denoiser_place_count=denoiser.num_places,
            max_rows=self.models.max_rows(default_model),
        )

    def wait_s(self) -> float | None:
        """Returns how long a new generation would wait; None while no speed is measured."""
        return self._wait_behind_s(self._register.queued)

    async def drain(self, *, grace_s: float) -> None:
        """Refuses new generations, fails those that wait, and lets the others run ``grace_s``."""
        self._is_draining = True
        for generation in (*self._register.queued, *self._register.waiting_for_models):
            generation.fail(Draining(retry_after_s=DRAINING_RETRY_S))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._housekeeper.wait_until_idle()
        self._end_all(Draining(retry_after_s=DRAINING_RETRY_S))

    async def aclose(self) -> None:
        """Fails all generations and stops the device thread after its current call."""
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

    @property
    def _num_queued(self) -> int:
        return len(self._register.queued) + len(self._register.waiting_for_models)

    def _refusal(self, newcomer: Generation) -> GenerationError | None:
        def wait_s() -> float | None:
            queued = self._register.queued
            return self._wait_behind_s([one for one in queued if one.order < newcomer.order])

        return refusal(
            newcomer.work_left,
            deadline=newcomer.request.deadline,
            now=time.monotonic(),
            load=Load(
                is_draining=self._is_draining,
                has_failed=self.failed.is_set(),
                running_count=len(self._register.running),
                queued_count=self._num_queued,
                wait_s=wait_s,
            ),
            estimator=self._estimator,
            settings=self._settings,
        )

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
        # Without it no deadline is enforced and no queue position is sent: a restart is better.
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

    def _run_device_thread(self) -> None:
        try:
            self._device_loop.run()
        finally:
            self._call_soon(self._has_stopped.set)

    def _call_soon(self, callback: Callable[[], None]) -> None:
        """Schedules a callback on the event loop. Any thread."""
        # When the event loop is closed, nothing is left to notify.
        with contextlib.suppress(RuntimeError):
            self._running_loop().call_soon_threadsafe(callback)
