"""The diffusion state of one generation: latents, scheduler, generators, conditioning, position.

Device thread only. All images of the generation move in lockstep. ``rows`` changes nothing, so
that a failed denoiser call can be made again; diffusion state moves in ``advance`` alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from latentwire_server.engine.beginning import Beginner
from latentwire_server.engine.lifecycle import Stage, TrajectoryEvent, next_stage
from latentwire_server.engine.policy import Candidate, Group

if TYPE_CHECKING:
    from collections.abc import Hashable

    from latentwire_server.engine.beginning import KeptPart
    from latentwire_server.engine.generation import Generation
    from latentwire_server.engine.policy import Moment
    from latentwire_server.engine.types import GenerationRequest
    from latentwire_server.models.info import SchedulerChoice
    from latentwire_server.models.model import Conditioning, DiffusionModel, StepScheduler


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phase:
    """A stretch of a trajectory: which model takes how many steps of which scheduler."""

    model: DiffusionModel
    scheduler: SchedulerChoice
    num_inference_steps: int
    """How many steps the scheduler's noise levels are spaced for."""
    num_steps: int
    """How many of them, the last, are taken."""
    guidance_scale: float

    @classmethod
    def of(cls, request: GenerationRequest, model: DiffusionModel) -> Phase:
        """Returns the one phase of a request."""
        return cls(
            model=model,
            scheduler=request.scheduler,
            num_inference_steps=request.num_inference_steps,
            num_steps=request.num_steps,
            guidance_scale=request.guidance_scale,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """What a trajectory puts into a denoiser call: the unconditional rows first, if any."""

    latents: torch.Tensor
    """(rows, channels, height, width) float32, scaled by the scheduler."""
    timestep: float
    conditioning: tuple[Conditioning, ...]


class Trajectory:
    """One generation's way from noise to latents."""

    def __init__(self, generation: Generation, *, phase: Phase) -> None:
        self.generation = generation
        self.phase = phase
        self.stage = Stage.ENCODING
        self.position = 0
        self.num_decoded = 0
        self.scheduler: StepScheduler = phase.model.create_scheduler(
            phase.scheduler,
            num_inference_steps=phase.num_inference_steps,
            num_skipped=phase.num_inference_steps - phase.num_steps,
        )
        self.num_evaluations = self.scheduler.num_evaluations
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in self.request.seeds]
        shape = phase.model.latent_shape(width=self.request.width, height=self.request.height)
        self._latent_size = shape[1:]
        # Its own: the generation forgets it when it ends, which may be in the middle of a step.
        self.source = self.request.source
        beginning = Beginner(
            request=self.request,
            model=phase.model,
            scheduler=self.scheduler,
            generators=self.generators,
        ).begin()
        self.latents = beginning.latents
        self._kept = beginning.kept
        self._mask_latents = beginning.mask_latents
        self._num_chunks = 1
        self._conditioning: tuple[Conditioning, ...] = ()
        self._unconditional: tuple[Conditioning, ...] = ()

    @property
    def request(self) -> GenerationRequest:
        """What the caller asked for."""
        return self.generation.request

    @property
    def group(self) -> Group:
        """Those that it can share a denoiser call with."""
        height, width = self._latent_size
        return Group(
            model=self.phase.model.info.id,
            height=height,
            width=width,
            num_chunks=self._num_chunks,
        )

    @property
    def moment(self) -> Moment:
        """Where it is: others at the same moment have the same rows."""
        return self.request.picture, self.position

    @property
    def place(self) -> Hashable:
        """Where its sampler is: those at one place can step together."""
        return self.group, self.scheduler.kind, self.position

    @property
    def candidate(self) -> Candidate:
        """The trajectory as the policy sees it."""
        return Candidate(
            id=self.generation.id,
            group=self.group,
            num_rows=self.request.num_rows,
            priority=self.request.priority,
            needs_decoding=self.stage is Stage.DECODING,
            moment=self.moment,
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
        return position * self.phase.num_steps // self.num_evaluations

    def condition(
        self, text: Conditioning, *, negative: Conditioning | None, num_chunks: int = 1
    ) -> None:
        """Takes in the encoded prompts, of equal length; no ``negative`` without guidance."""
        self._num_chunks = num_chunks
        self._conditioning = self._for_each_image(text)
        self._unconditional = () if negative is None else self._for_each_image(negative)
        self._move(TrajectoryEvent.ENCODED)

    def catch_up(self, leader: Trajectory) -> None:
        """Goes on from where another one of the same picture is."""
        self.position = leader.position
        self.latents = leader.latents.clone()
        self.scheduler = copy.deepcopy(leader.scheduler)
        for own, other in zip(self.generators, leader.generators, strict=True):
            own.set_state(other.get_state())

    def rows(self) -> Rows:
        """Returns the input of the next evaluation. Changes nothing."""
        scaled = self.scheduler.scale_model_input(self.latents, self.position)
        return Rows(
            latents=torch.cat([scaled] * 2) if self._unconditional else scaled,
            timestep=self.scheduler.timestep(self.position),
            conditioning=self._unconditional + self._conditioning,
        )

    def noise_pred(self, rows_pred: torch.Tensor) -> torch.Tensor:
        """Returns what the rows come to with guidance, (images, channels, height, width) float32.

        Args:
            rows_pred: (rows, channels, height, width) float32, one per row of ``rows()``.
        """
        if not self._unconditional:
            return rows_pred
        unconditional, text = rows_pred.chunk(2)
        return unconditional + self.phase.guidance_scale * (text - unconditional)

    def predicted_original(self, noise_pred: torch.Tensor) -> torch.Tensor:
        """Returns x₀ as ``noise_pred`` implies it for the next step."""
        return self.scheduler.predicted_original(noise_pred, self.latents, self.position)

    def advance(self, noise_pred: torch.Tensor) -> None:
        """Takes the step that ``noise_pred`` implies."""
        self.move_to(
            self.scheduler.step(noise_pred, self.latents, self.position, generators=self.generators)
        )

    def move_to(self, latents: torch.Tensor) -> None:
        """Goes on from where ``scheduler`` has stepped to."""
        self.position += 1
        self.latents = latents if self._kept is None else self._with_kept(self._kept, latents)
        if self.position == self.num_evaluations:
            self._move(TrajectoryEvent.DENOISED)

    def take_image(self) -> torch.Tensor:
        """Returns the latents of the next image to decode, (1, channels, height, width)."""
        image = self.latents[self.num_decoded : self.num_decoded + 1]
        self.num_decoded += 1
        if self.num_decoded == self.request.num_images:
            self._move(TrajectoryEvent.DECODED)
        return image

    def drop(self) -> None:
        """Ends the way early."""
        self._move(TrajectoryEvent.DROPPED)

    def _for_each_image(self, text: Conditioning) -> tuple[Conditioning, ...]:
        if self._mask_latents is None:
            return (text,) * self.request.num_images
        return tuple(replace(text, mask_latents=own) for own in self._mask_latents)

    def _with_kept(self, kept: KeptPart, latents: torch.Tensor) -> torch.Tensor:
        """Puts the kept part back, as noisy as the rest is now."""
        original = kept.original
        if self.position < self.num_evaluations:
            original = self.scheduler.add_noise(original, kept.noise, self.position)
        return (1 - kept.mask) * original + kept.mask * latents

    def _move(self, event: TrajectoryEvent) -> None:
        self.stage = next_stage(self.stage, event)
