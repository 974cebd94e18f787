"""The phases of a request on its way from noise to finished latents, as data.

Pure, any thread: a phase names its model and does nothing with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from latentwire_server.engine.policy.estimate import PhaseWork
from latentwire_server.engine.policy.policy import Group
from latentwire_server.models.info import NoiseRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentwire_server.engine.request import Adapters, GenerationRequest
    from latentwire_server.models.info import SchedulerChoice
    from latentwire_server.models.protocol import ModelSpec


ModelT = TypeVar("ModelT", bound="ModelSpec")


class Entry(Enum):
    """How a phase gets the latents of its first step."""

    PREPARE = auto()
    """It prepares them from noise or from the request's source."""
    ENLARGE = auto()
    """It enlarges those of the phase before and noises them again."""
    CONTINUE = auto()
    """It takes those of the phase before as they are."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phase(Generic[ModelT]):
    """One model's part of a trajectory: certain steps of a scheduler, at one size."""

    model: ModelT
    scheduler: SchedulerChoice
    num_inference_steps: int
    """The number of steps that the scheduler's noise levels are spaced for."""
    num_skipped: int
    """How many of them are skipped, from the first on."""
    noise_range: NoiseRange
    """The part of the noise levels that belongs to this phase."""
    guidance_scale: float
    width: int
    """Of the image in pixels, as is the height."""
    height: int
    entry: Entry
    adapters: Adapters = ()
    """The adapters in its model."""

    @property
    def group(self) -> Group:
        """The group whose members can share its denoiser calls."""
        _, height, width = self.model.latent_shape(width=self.width, height=self.height)
        return Group(model=self.model.info.id, height=height, width=width, adapters=self.adapters)

    @property
    def expected_work(self) -> PhaseWork:
        """About how many evaluations it takes; only its scheduler knows exactly."""
        first, last = (
            round(share * self.num_inference_steps)
            for share in (self.noise_range.start, self.noise_range.end)
        )
        evaluations = {one.id: one.evaluations_per_step for one in self.model.info.schedulers}
        num_steps = max(0, last - max(first, self.num_skipped))
        return PhaseWork(
            group=self.group,
            num_evaluations=num_steps * evaluations.get(self.scheduler.id, 1),
        )


def phases_of(request: GenerationRequest, model: ModelT) -> tuple[Phase[ModelT], ...]:
    """Returns the phases of a request; some may turn out to have no steps.

    The high-resolution fix makes two passes: one at the smaller size, by the model alone, and one
    that regenerates the enlarged result. A refiner makes the last pass an ensemble of experts: the
    model takes the high noise levels, the refiner the low ones. Adapters are for the model only.
    """
    strength = 1.0 if request.source is None else request.source.strength
    last_pass = _Pass(
        width=request.width, height=request.height, strength=strength, entry=Entry.PREPARE
    )
    phases: list[Phase[ModelT]] = []
    fix = request.high_resolution_fix
    if fix is not None:
        first_pass = _Pass(width=fix.width, height=fix.height, strength=1.0, entry=Entry.PREPARE)
        phases += first_pass.phases(request, [(model, NoiseRange())])
        last_pass = replace(last_pass, strength=fix.strength, entry=Entry.ENLARGE)
    experts = [(model, NoiseRange())]
    # A loaded model's refiner is loaded too.
    refiner, share = cast("ModelT | None", model.refiner), request.high_noise_frac
    if refiner is not None and share is not None and share != 1.0:
        experts = [(model, NoiseRange(end=share)), (refiner, NoiseRange(start=share))]
    phases += last_pass.phases(request, experts)
    return tuple(
        replace(phase, adapters=request.adapters) if phase.model is model else phase
        for phase in phases
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One run through the noise levels, at one size."""

    width: int
    height: int
    strength: float
    """The share of the steps that are taken, the last ones."""
    entry: Entry

    def phases(
        self, request: GenerationRequest, experts: Sequence[tuple[ModelT, NoiseRange]]
    ) -> list[Phase[ModelT]]:
        return [
            Phase(
                model=expert,
                scheduler=request.scheduler,
                num_inference_steps=request.num_inference_steps,
                num_skipped=request.num_inference_steps - request.steps_of(self.strength),
                noise_range=noise_range,
                guidance_scale=request.guidance_scale,
                width=self.width,
                height=self.height,
                entry=self.entry if number == 0 else Entry.CONTINUE,
            )
            for number, (expert, noise_range) in enumerate(experts)
        ]
