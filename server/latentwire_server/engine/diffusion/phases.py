"""What a request's way from noise to latents consists of: phases, as data.

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
    """What a phase does with the latents before its first step."""

    BEGIN = auto()
    """Makes them: from noise, or from the request's source."""
    ENLARGE = auto()
    """Enlarges those of the phase before, and makes them noisy again."""
    CONTINUE = auto()
    """Takes them as they are."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phase(Generic[ModelT]):
    """A stretch of a trajectory: which model takes which steps of which scheduler."""

    model: ModelT
    scheduler: SchedulerChoice
    num_inference_steps: int
    """How many steps the scheduler's noise levels are spaced for."""
    num_skipped: int
    """How many of them, the first, are not taken."""
    noise_range: NoiseRange
    """Which of the noise levels are this phase's."""
    guidance_scale: float
    width: int
    """Of the picture, as is the height."""
    height: int
    entry: Entry
    adapters: Adapters = ()
    """Those that are in its model."""

    @property
    def group(self) -> Group:
        """Those that share its denoiser calls."""
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
    """Returns the phases of a request; some may turn out to have no steps to take.

    With the high-resolution fix there are two passes: one at the smaller size, by the model alone,
    and one over what it drew. With a refiner the last pass is an ensemble of experts: the model
    takes the high noise levels, the refiner the low ones. Adapters are the model's alone.
    """
    return tuple(
        replace(phase, adapters=request.adapters) if phase.model is model else phase
        for phase in _bare_phases(request, model)
    )


def _bare_phases(request: GenerationRequest, model: ModelT) -> tuple[Phase[ModelT], ...]:
    alone = _Pass(width=request.width, height=request.height, entry=Entry.BEGIN)
    fix = request.high_resolution_fix
    if fix is None:
        strength = 1.0 if request.source is None else request.source.strength
        return alone.phases(request, _experts(request, model), strength=strength)
    first = replace(alone, width=fix.width, height=fix.height)
    second = replace(alone, entry=Entry.ENLARGE)
    return (
        *first.phases(request, [(model, NoiseRange())], strength=1.0),
        *second.phases(request, _experts(request, model), strength=fix.strength),
    )


def _experts(request: GenerationRequest, model: ModelT) -> Sequence[tuple[ModelT, NoiseRange]]:
    share = request.high_noise_frac
    # Of a loaded model it is loaded too.
    refiner = cast("ModelT | None", model.refiner)
    if refiner is None or share is None or share == 1.0:
        return [(model, NoiseRange())]
    return [(model, NoiseRange(end=share)), (refiner, NoiseRange(start=share))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """Once through the noise levels, at one size."""

    width: int
    height: int
    entry: Entry

    def phases(
        self,
        request: GenerationRequest,
        experts: Sequence[tuple[ModelT, NoiseRange]],
        *,
        strength: float,
    ) -> tuple[Phase[ModelT], ...]:
        return tuple(
            Phase(
                model=expert,
                scheduler=request.scheduler,
                num_inference_steps=request.num_inference_steps,
                num_skipped=request.num_inference_steps - request.steps_of(strength),
                noise_range=noise_range,
                guidance_scale=request.guidance_scale,
                width=self.width,
                height=self.height,
                entry=self.entry if number == 0 else Entry.CONTINUE,
            )
            for number, (expert, noise_range) in enumerate(experts)
        )
