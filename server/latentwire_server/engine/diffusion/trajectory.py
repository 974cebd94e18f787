"""The diffusion state of one generation: latents, scheduler, generators, conditioning, position.

Device thread only. All images of the generation move in lockstep. ``rows`` changes nothing, so
that a failed denoiser call can be made again; diffusion state changes in ``advance`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from latentwire_server.engine.diffusion.initial_latents import LatentPreparer
from latentwire_server.engine.diffusion.phases import Entry
from latentwire_server.engine.handover.lifecycle import Stage, TrajectoryEvent, next_stage
from latentwire_server.engine.policy.estimate import PhaseWork
from latentwire_server.engine.policy.policy import Candidate

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from latentwire_server.engine.diffusion.phases import Phase
    from latentwire_server.engine.handover.generation import Generation
    from latentwire_server.engine.policy.policy import Group
    from latentwire_server.engine.request import GenerationRequest
    from latentwire_server.models.protocol import Conditioning, DiffusionModel, StepScheduler


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompts:
    """The encoded prompts of one phase."""

    text: Conditioning
    negative: Conditioning | None
    """None: without guidance."""
    num_chunks: int
    """Their length, in lengths of the text encoder."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """The rows of a trajectory in a denoiser call: the unconditional ones first, if any."""

    latents: torch.Tensor
    """(rows, channels, height, width) float32, scaled by the scheduler."""
    timestep: float
    conditioning: tuple[Conditioning, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ScheduledPhase:
    """A phase that has steps to take, with its scheduler."""

    phase: Phase[DiffusionModel]
    scheduler: StepScheduler


class Trajectory:
    """One generation's way from noise to finished latents."""

    def __init__(self, generation: Generation, *, phases: Sequence[Phase[DiffusionModel]]) -> None:
        self.generation = generation
        self.model = phases[0].model
        """The requested model; a refiner may take some of the steps."""
        self.stage = Stage.ENCODING
        self.position = 0
        """Evaluations done, in all phases."""
        self.num_decoded = 0
        self._scheduled = _schedule(phases)
        self._index = 0
        self._phase_start = 0
        self.num_evaluations = sum(one.scheduler.num_evaluations for one in self._scheduled)
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in self.request.seeds]
        # A reference of its own: the generation drops its source when it ends, which may happen in
        # the middle of a step.
        self.source = self.request.source
        initial = self._latent_preparer().prepare()
        self.latents = initial.latents
        self._unmasked = initial.unmasked
        self._mask_latents = initial.mask_latents
        self._prompts: tuple[Prompts, ...] = ()

    @property
    def request(self) -> GenerationRequest:
        """The generation's request."""
        return self.generation.request

    @property
    def phases(self) -> tuple[Phase[DiffusionModel], ...]:
        """The phases that have steps to take."""
        return tuple(one.phase for one in self._scheduled)

    @property
    def phase(self) -> Phase[DiffusionModel]:
        """The current phase; at the end, the last one."""
        return self._scheduled[self._index].phase

    @property
    def scheduler(self) -> StepScheduler:
        """The scheduler of the current phase."""
        return self._scheduled[self._index].scheduler

    @property
    def phase_position(self) -> int:
        """Evaluations done in the current phase."""
        return self.position - self._phase_start

    @property
    def work(self) -> tuple[PhaseWork, ...]:
        """The denoiser's work in each phase, from the first on."""
        return tuple(
            PhaseWork(group=self._group(index), num_evaluations=one.scheduler.num_evaluations)
            for index, one in enumerate(self._scheduled)
        )

    @property
    def group(self) -> Group:
        """The group whose members can share a denoiser call with it."""
        return self._group(self._index)

    @property
    def step_key(self) -> Hashable:
        """Trajectories with equal keys can take their next step together."""
        return self.group, self.scheduler.kind, self.phase_position

    @property
    def candidate(self) -> Candidate:
        """The trajectory as the policy sees it."""
        return Candidate(
            id=self.generation.id,
            group=self.group,
            num_rows=self.request.num_rows,
            priority=self.request.priority,
            needs_decoding=self.stage is Stage.DECODING,
        )

    @property
    def step(self) -> int:
        """Denoising steps done, derived from the evaluations done."""
        return self.step_after(0)

    @property
    def fraction(self) -> float:
        """Share of the whole work that is done; decoding an image counts as one evaluation."""
        whole = self.num_evaluations + self.request.num_images
        return (self.position + self.num_decoded) / whole

    def step_after(self, evaluations: int) -> int:
        """Returns the denoising steps done after that many evaluations from now."""
        position = self.position + evaluations
        return position * self.request.num_steps // self.num_evaluations

    def condition(self, prompts: Sequence[Prompts]) -> None:
        """Sets the encoded prompts of each phase."""
        self._prompts = tuple(prompts)
        self._move(TrajectoryEvent.ENCODED)

    def rows(self) -> Rows:
        """Returns the input of the next evaluation. Changes nothing."""
        prompts, position = self._prompts[self._index], self.phase_position
        negative = () if prompts.negative is None else self._for_each_image(prompts.negative)
        scaled = self.scheduler.scale_model_input(self.latents, position)
        return Rows(
            latents=torch.cat([scaled] * 2) if negative else scaled,
            timestep=self.scheduler.timestep(position),
            conditioning=negative + self._for_each_image(prompts.text),
        )

    def noise_pred(self, rows_pred: torch.Tensor) -> torch.Tensor:
        """Returns the prediction after guidance, (images, channels, height, width) float32.

        Args:
            rows_pred: (rows, channels, height, width) float32, one per row of ``rows()``.
        """
        if self._prompts[self._index].negative is None:
            return rows_pred
        unconditional, text = rows_pred.chunk(2)
        return unconditional + self.phase.guidance_scale * (text - unconditional)

    def predicted_original(self, noise_pred: torch.Tensor) -> torch.Tensor:
        """Returns the x₀ that ``noise_pred`` implies for the next step."""
        return self.scheduler.predicted_original(noise_pred, self.latents, self.phase_position)

    def advance(self, noise_pred: torch.Tensor) -> None:
        """Takes the step that ``noise_pred`` implies."""
        stepped = self.scheduler.step(
            noise_pred, self.latents, self.phase_position, generators=self.generators
        )
        self.move_to(stepped)

    def move_to(self, latents: torch.Tensor) -> None:
        """Continues from the latents that ``scheduler`` has stepped to."""
        self.position += 1
        is_done = self.position == self.num_evaluations
        if self.phase_position == self.scheduler.num_evaluations and not is_done:
            self._index += 1
            self._phase_start = self.position
            if self.phase.entry is Entry.ENLARGE:
                latents = self._latent_preparer().enlarge(latents)
        self.latents = self._with_unmasked(latents)
        if is_done:
            self._move(TrajectoryEvent.DENOISED)

    def take_image(self) -> torch.Tensor:
        """Returns the latents of the next image to decode, (1, channels, height, width)."""
        image = self.latents[self.num_decoded : self.num_decoded + 1]
        self.num_decoded += 1
        if self.num_decoded == self.request.num_images:
            self._move(TrajectoryEvent.DECODED)
        return image

    def drop(self) -> None:
        """Ends the trajectory before its work is done."""
        self._move(TrajectoryEvent.DROPPED)

    def _latent_preparer(self) -> LatentPreparer:
        return LatentPreparer(
            request=self.request,
            width=self.phase.width,
            height=self.phase.height,
            model=self.model,
            scheduler=self.scheduler,
            generators=self.generators,
        )

    def _group(self, index: int) -> Group:
        group = self._scheduled[index].phase.group
        # Prompts are taken to be short until they are encoded.
        num_chunks = self._prompts[index].num_chunks if self._prompts else 1
        return replace(group, num_chunks=num_chunks)

    def _for_each_image(self, text: Conditioning) -> tuple[Conditioning, ...]:
        if self.request.guidance_is_embedded:
            text = replace(text, guidance_scale=self.phase.guidance_scale)
        if self._mask_latents is None:
            return (text,) * self.request.num_images
        return tuple(replace(text, mask_latents=own) for own in self._mask_latents)

    def _with_unmasked(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns latents whose unmasked region is the original, as noisy as the rest is now."""
        unmasked = self._unmasked
        if unmasked is None:
            return latents
        original = unmasked.original
        if self.position < self.num_evaluations:
            original = self.scheduler.add_noise(original, unmasked.noise, self.phase_position)
        return (1 - unmasked.mask) * original + unmasked.mask * latents

    def _move(self, event: TrajectoryEvent) -> None:
        self.stage = next_stage(self.stage, event)


def _schedule(phases: Sequence[Phase[DiffusionModel]]) -> list[_ScheduledPhase]:
    """Returns the phases that have steps to take; the entry of one without passes to the next."""
    scheduled: list[_ScheduledPhase] = []
    entry = Entry.PREPARE
    for phase in phases:
        if phase.entry is not Entry.CONTINUE:
            entry = phase.entry
        scheduler = phase.model.create_scheduler(
            phase.scheduler,
            num_inference_steps=phase.num_inference_steps,
            num_skipped=phase.num_skipped,
            noise_range=phase.noise_range,
        )
        if scheduler.num_evaluations > 0:
            scheduled.append(
                _ScheduledPhase(phase=replace(phase, entry=entry), scheduler=scheduler)
            )
            entry = Entry.CONTINUE
    return scheduled
