"""The device loop: take in, choose, gather, denoise, advance, finish.

Runs on the one thread that owns the device. It never waits for a client, never takes an asyncio
lock and never logs per step. It sleeps when there is nothing to do.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

import torch

from latentwire_server.engine.device.adapters import AdapterMemory
from latentwire_server.engine.device.denoising import Denoiser
from latentwire_server.engine.device.faults import DeviceBroken, as_generation_error, free_memory
from latentwire_server.engine.device.prompt_encoding import PromptEncoder
from latentwire_server.engine.device.reporting import (
    report_preview,
    report_progress,
    wants_progress,
)
from latentwire_server.engine.device.stepping import Step, take_steps
from latentwire_server.engine.diffusion.phases import phases_of
from latentwire_server.engine.diffusion.trajectory import Trajectory
from latentwire_server.engine.errors import DeadlinePassed, DeviceOutOfMemory, GenerationError
from latentwire_server.engine.events import PhaseName
from latentwire_server.engine.handover.lifecycle import Stage
from latentwire_server.engine.policy.policy import Candidate, Decode, Denoise, Policy, Waiting
from latentwire_server.engine.settings import Batching

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from latentwire_server.engine.device.finishing import Finisher
    from latentwire_server.engine.handover.generation import Generation
    from latentwire_server.engine.handover.inbox import Inbox
    from latentwire_server.engine.policy.estimate import Estimator
    from latentwire_server.engine.policy.policy import Group
    from latentwire_server.engine.policy.row_budget import RowBudget
    from latentwire_server.engine.settings import EngineSettings
    from latentwire_server.models.protocol import DiffusionModel

_LOGGER = logging.getLogger(__name__)


class DeviceLoop:
    """Serves all trajectories of one device, step by step."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        inbox: Inbox,
        estimator: Estimator,
        row_budget: RowBudget,
        finisher: Finisher,
        on_failed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._inbox = inbox
        self._estimator = estimator
        self._on_failed = on_failed
        interval = settings.decode_interval_ticks
        self._policy = Policy(max_rows=row_budget.of, decode_interval_ticks=interval)
        self.denoiser = Denoiser(
            row_limit=self._policy.row_limit,
            estimator=estimator,
            is_reproducible=settings.batching is Batching.REPRODUCIBLE,
        )
        self._encoder = PromptEncoder()
        self.adapters = AdapterMemory(capacity_bytes=settings.lora_bytes, on_loaded=inbox.wake)
        self._finisher = finisher
        self._models: dict[str, DiffusionModel] = {}
        self._waiting: dict[str, Generation] = {}
        self._running: dict[str, Trajectory] = {}

    def run(self) -> None:
        """Runs until the inbox is stopped or the device breaks."""
        try:
            with torch.inference_mode():
                while not self._inbox.is_stopped:
                    if not self.tick():
                        self._inbox.wait()
        except DeviceBroken as broken:
            _LOGGER.critical("device failed error_id=%s", broken)
            self._on_failed()
        except Exception:
            # A bug in the loop itself: its next steps cannot be trusted either.
            _LOGGER.critical("device loop failed error_id=%s", uuid.uuid4().hex[:12], exc_info=True)
            self._on_failed()
        finally:
            self.adapters.close()
            self._waiting.clear()
            self._running.clear()
            self._inbox.close()

    def add_model(self, model: DiffusionModel) -> None:
        """Adds a model, before the first generation that needs it. Any thread."""
        self._models[model.info.id] = model

    def forget_model(self, model_id: str) -> None:
        """Drops a model that no generation needs, with everything made from it.

        Device thread, as a device task.
        """
        self._models.pop(model_id, None)
        self._encoder.forget(model_id)
        self.adapters.forget(model_id)
        free_memory()

    def tick(self) -> bool:
        """Does one piece of work. Returns false if there is none."""
        # Taken before the ended generations are dropped: it may free what they have used.
        task = self._inbox.take_task()
        self._take_in()
        self._drop_ended()
        if task is not None:
            task.run()
        self._admit()
        work = self._policy.choose(self._candidates())
        started = time.monotonic()
        match work:
            case Denoise(ids=ids):
                self._denoise([self._running[id_] for id_ in ids])
            case Decode(id=id_):
                self._decode(self._running[id_])
            case None:
                return task is not None
            case _:
                assert_never(work)
        self._policy.charge(seconds=time.monotonic() - started)
        return True

    def _take_in(self) -> None:
        for generation in self._inbox.take():
            self._waiting[generation.id] = generation

    def _drop_ended(self) -> None:
        now = time.monotonic()
        generations = [*self._waiting.values(), *(run.generation for run in self._running.values())]
        for generation in generations:
            deadline = generation.request.deadline
            if deadline is not None and deadline <= now:
                generation.cancel(DeadlinePassed())
            if generation.is_ended:
                self._waiting.pop(generation.id, None)
                self._drop(generation.id)
        self.adapters.keep_only_users({*self._waiting, *self._running})

    def _admit(self) -> None:
        """Starts waiting generations while there are free places."""
        while self._waiting and len(self._running) < self._settings.max_running:
            ready = self.adapters.ready(self._waiting.values(), self._models.__getitem__)
            if not ready:
                return
            waiting = [
                Waiting(
                    id=id_,
                    priority=generation.request.priority,
                    urgent_deadline=self._urgent_deadline(
                        generation, self._rows_of_a_round(newcomer=generation)
                    ),
                )
                for id_, generation in self._waiting.items()
                if id_ in ready
            ]
            generation = self._waiting.pop(self._policy.admit(waiting))
            if generation.start():
                self._guard(generation, self._start)
            started = self._running.get(generation.id)
            if started is not None and (started.source is not None or started.model.sees_masks):
                # It has encoded an image, which takes as long as some steps: at most one in each
                # tick, so that the running generations go on meanwhile.
                return

    def _start(self, generation: Generation) -> None:
        model = self._models[generation.request.model]
        model = self.adapters.model_for(generation, model)
        if not self._running and model.device_name.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(model.device_name)
        trajectory = Trajectory(generation, phases=phases_of(generation.request, model))
        generation.phases = trajectory.work
        rows = self._rows_of_a_round(newcomer=generation)
        report_progress(trajectory, PhaseName.ENCODING, estimator=self._estimator, rows=rows)
        self._encoder.encode(trajectory)
        generation.phases = trajectory.work
        generation.timestamps.encoded = time.monotonic()
        self._running[generation.id] = trajectory

    def _candidates(self) -> list[Candidate]:
        rows = self._rows_of_a_round()
        return [
            replace(run.candidate, urgent_deadline=self._urgent_deadline(run.generation, rows))
            for run in self._running.values()
        ]

    def _urgent_deadline(self, generation: Generation, rows: Counter[Group]) -> float | None:
        """Returns the deadline if it is urgent; ``rows`` include the generation's own."""
        deadline = generation.request.deadline
        if deadline is None:
            return None
        left_s = deadline - time.monotonic()
        is_urgent = self._estimator.is_urgent(generation.work_left, left_s=left_s, rows=rows)
        return deadline if is_urgent else None

    def _rows_of_a_round(self, *, newcomer: Generation | None = None) -> Counter[Group]:
        """Returns how many rows of each group one evaluation of every trajectory takes."""
        rows: Counter[Group] = Counter()
        for run in self._running.values():
            if run.stage is Stage.DENOISING:
                rows[run.group] += run.request.num_rows
        if newcomer is not None:
            work = newcomer.work_left
            rows[work.group] += work.num_rows
        return rows

    def _denoise(self, batch: Sequence[Trajectory]) -> None:
        outcomes = self.denoiser.evaluate(batch)
        rows = self._rows_of_a_round()
        predictions: list[tuple[Trajectory, torch.Tensor]] = []
        for trajectory in batch:
            outcome = outcomes.get(trajectory.generation.id)
            match outcome:
                case torch.Tensor():
                    predictions.append((trajectory, outcome))
                case GenerationError():
                    self._end(trajectory.generation, outcome)
                case None:  # It ended meanwhile.
                    self._drop(trajectory.generation.id)
                case _:
                    assert_never(outcome)
        for trajectory, step in take_steps(predictions):
            match step:
                case Step():
                    self._report_step(step, rows=rows)
                case GenerationError():
                    self._end(trajectory.generation, step)
                case _:
                    assert_never(step)

    def _report_step(self, step: Step, *, rows: Counter[Group]) -> None:
        trajectory = step.trajectory

        def report(generation: Generation) -> None:
            generation.evaluations_done = trajectory.position
            generation.step, generation.fraction = trajectory.step, trajectory.fraction
            if wants_progress(trajectory):
                report_progress(
                    trajectory, PhaseName.DENOISING, estimator=self._estimator, rows=rows
                )
            if step.original is not None:
                report_preview(trajectory, step.original)
            if trajectory.stage is Stage.DECODING:
                generation.timestamps.denoised = time.monotonic()

        self._guard(trajectory.generation, report)

    def _decode(self, trajectory: Trajectory) -> None:
        def decode(generation: Generation) -> None:
            rows = self._rows_of_a_round()
            report_progress(trajectory, PhaseName.DECODING, estimator=self._estimator, rows=rows)
            self._finisher.finish_image(trajectory)
            generation.fraction = max(generation.fraction, trajectory.fraction)
            if trajectory.stage is Stage.DONE:
                del self._running[generation.id]

        self._guard(trajectory.generation, decode)

    def _guard(self, generation: Generation, work: Callable[[Generation], None]) -> None:
        """Does work of one generation; a failure ends that generation only."""
        failure: GenerationError | None = None
        try:
            work(generation)
        except Exception as error:  # Border: the device loop
            failure = as_generation_error(error, generation.request)
            # A traceback that is kept keeps the tensors of its frames.
            error.__traceback__ = None
        if failure is not None:
            self._end(generation, failure)

    def _end(self, generation: Generation, failure: GenerationError) -> None:
        self._drop(generation.id)
        generation.fail(failure)
        if isinstance(failure, DeviceOutOfMemory):
            free_memory()

    def _drop(self, id_: str) -> None:
        trajectory = self._running.pop(id_, None)
        if trajectory is not None:
            trajectory.drop()
