"""The schedulers' part of a step, for a whole batch.

Device thread only. Trajectories at the same evaluation of the same scheduler step together. A
failure ends its own generation and no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from latentwire_server.engine.device.faults import as_generation_error, raise_if_broken
from latentwire_server.engine.device.reporting import wants_preview

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from latentwire_server.engine.diffusion.trajectory import Trajectory
    from latentwire_server.engine.errors import GenerationError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """The next step of a trajectory."""

    trajectory: Trajectory
    noise_pred: torch.Tensor
    """(images, channels, height, width) float32, guided."""
    original: torch.Tensor | None
    """The x₀ that it implies, where a preview is due."""

    @classmethod
    def of(cls, trajectory: Trajectory, rows_pred: torch.Tensor) -> Step:
        """Returns the step that the predictions for a trajectory's rows imply."""
        noise_pred = trajectory.noise_pred(rows_pred)
        original = trajectory.predicted_original(noise_pred) if wants_preview(trajectory) else None
        return cls(trajectory=trajectory, noise_pred=noise_pred, original=original)


def take_steps(
    predictions: Sequence[tuple[Trajectory, torch.Tensor]],
) -> Iterator[tuple[Trajectory, Step | GenerationError]]:
    """Advances every trajectory; yields the step that it took, or its failure.

    Raises:
        DeviceBroken: The device is broken.
    """
    by_step_key: dict[Hashable, list[Step]] = {}
    for trajectory, rows_pred in predictions:
        try:
            step = Step.of(trajectory, rows_pred)
        except Exception as error:  # Border: the device loop
            yield trajectory, _failure(error, trajectory)
        else:
            by_step_key.setdefault(trajectory.step_key, []).append(step)
    for together in by_step_key.values():
        if len(together) == 1 or not _take_together(together):
            yield from ((step.trajectory, _take_alone(step)) for step in together)
        else:
            yield from ((step.trajectory, step) for step in together)


def step_together(steps: Sequence[Step]) -> None:
    """Advances trajectories with equal step keys; if it raises, none has moved.

    A step is some twenty operations on tensors so small that launching them takes the time,
    whether they hold one trajectory's latents or those of all.
    """
    trajectories = [step.trajectory for step in steps]
    generators = [generator for one in trajectories for generator in one.generators]
    states = [generator.get_state() for generator in generators]
    first, *others = (one.scheduler for one in trajectories)
    joined = first.joined(others)
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
    """Returns whether all have moved; otherwise none has, and each may try alone."""
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
    failure = as_generation_error(error, trajectory.request)
    # A traceback that is kept keeps the tensors of its frames.
    error.__traceback__ = None
    return failure
