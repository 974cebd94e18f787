"""The samplers' part of a step, for a whole batch: those at one place step together.

Device thread only. A failure ends the generation that it belongs to, and no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from latentwire_server.engine.device.faults import own_failure, raise_if_broken
from latentwire_server.engine.device.reporting import wants_preview

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from latentwire_server.engine.diffusion.trajectory import Trajectory
    from latentwire_server.engine.errors import GenerationError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """A step that a trajectory is to take."""

    trajectory: Trajectory
    noise_pred: torch.Tensor
    """(images, channels, height, width) float32, guided."""
    original: torch.Tensor | None
    """The x₀ that it implies, where a preview is due."""

    @classmethod
    def of(cls, trajectory: Trajectory, rows_pred: torch.Tensor) -> Step:
        """Returns what the prediction for each of the trajectory's rows comes to."""
        noise_pred = trajectory.noise_pred(rows_pred)
        original = trajectory.predicted_original(noise_pred) if wants_preview(trajectory) else None
        return cls(trajectory=trajectory, noise_pred=noise_pred, original=original)


def take_steps(
    predictions: Sequence[tuple[Trajectory, torch.Tensor]],
) -> Iterator[tuple[Trajectory, Step | GenerationError]]:
    """Moves every trajectory; yields the step that it took, or why it cannot.

    Raises:
        DeviceBroken: the device is broken.
    """
    at_one_place: dict[Hashable, list[Step]] = {}
    for trajectory, rows_pred in predictions:
        try:
            step = Step.of(trajectory, rows_pred)
        except Exception as error:  # Border: the device loop
            yield trajectory, _failure(error, trajectory)
        else:
            at_one_place.setdefault(trajectory.place, []).append(step)
    for together in at_one_place.values():
        if len(together) == 1 or not _take_together(together):
            yield from ((step.trajectory, _take_alone(step)) for step in together)
        else:
            yield from ((step.trajectory, step) for step in together)


def step_together(steps: Sequence[Step]) -> None:
    """Moves trajectories that are at one place; if it raises, none has moved.

    A step is some twenty operations on tensors so small that calling them takes the time, whether
    they hold one trajectory's latents or everybody's.
    """
    trajectories = [step.trajectory for step in steps]
    generators = [generator for one in trajectories for generator in one.generators]
    states = [generator.get_state() for generator in generators]
    leader, *others = (one.scheduler for one in trajectories)
    joined = leader.joined(others)
    try:
        latents = joined.step(
            torch.cat([step.noise_pred for step in steps]),
            torch.cat([one.latents for one in trajectories]),
            trajectories[0].phase_position,
            generators=generators,
        )
    except Exception:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        raise
    start = 0
    for one in trajectories:
        images = slice(start, start + len(one.latents))
        one.scheduler.take_back(joined, images=images)
        one.move_to(latents[images])
        start = images.stop


def _take_together(steps: Sequence[Step]) -> bool:
    """Returns whether all have moved; else nobody has, and each may try alone."""
    try:
        step_together(steps)
    except Exception as error:  # Border: the device loop
        raise_if_broken(error)
        return False
    return True


def _take_alone(step: Step) -> Step | GenerationError:
    try:
        step.trajectory.advance(step.noise_pred)
    except Exception as error:  # Border: the device loop
        return _failure(error, step.trajectory)
    return step


def _failure(error: Exception, trajectory: Trajectory) -> GenerationError:
    failure = own_failure(error, trajectory.request)
    # A kept traceback keeps the tensors of its frames.
    error.__traceback__ = None
    return failure
