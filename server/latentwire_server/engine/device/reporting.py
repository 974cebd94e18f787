"""Publishes the progress and the previews of a running trajectory.

Device thread only. Publishes through the generation; never changes diffusion state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import torch

from latentwire_server.engine.device.finishing import pixels_of
from latentwire_server.engine.errors import NonFiniteOutput
from latentwire_server.engine.events import PhaseName, Preview, Progress
from latentwire_server.engine.request import PreviewMethod
from latentwire_server.imaging.encode import encode_preview

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire_server.engine.diffusion.trajectory import Trajectory
    from latentwire_server.engine.policy.estimate import Estimator
    from latentwire_server.engine.policy.policy import Group


def wants_progress(trajectory: Trajectory) -> bool:
    """Returns whether the evaluation just done completed a step whose progress is reported."""
    request, step = trajectory.request, trajectory.step
    if step == trajectory.step_after(-1):
        return False
    return step == request.num_steps or step % max(1, request.events.progress_interval_steps) == 0


def wants_preview(trajectory: Trajectory) -> bool:
    """Returns whether a preview is due once the next evaluation is done."""
    checker = trajectory.model.safety_checker
    if checker is not None and checker.hides_previews:
        return False
    interval = trajectory.request.events.preview_interval_steps
    step = trajectory.step_after(1)
    return interval > 0 and step > trajectory.step and step % interval == 0


def report_progress(
    trajectory: Trajectory,
    phase: PhaseName,
    *,
    estimator: Estimator,
    rows: Mapping[Group, int],
) -> None:
    """Publishes the progress of a trajectory and the time that it still needs.

    ``rows`` are those that one round evaluates, by group, the trajectory's own included.
    """
    generation = trajectory.generation
    generation.publish(
        Progress(
            phase=phase,
            step=generation.step,
            step_count=trajectory.request.num_steps,
            fraction=generation.fraction,
            estimated_remaining_s=estimator.remaining_s(generation.work_left, rows=rows),
        )
    )


def report_preview(trajectory: Trajectory, original: torch.Tensor) -> None:
    """Publishes each image of ``original``, the x₀ predicted at this step.

    Raises:
        NonFiniteOutput: The prediction has NaN or infinity.
    """
    request, model = trajectory.request, trajectory.model
    width, height = request.file_size
    for index in range(request.num_images):
        if trajectory.generation.is_ended:
            return  # A decoder takes seconds, and the client has left.
        latents = original[index : index + 1]
        match request.events.preview_method:
            case PreviewMethod.LINEAR:
                image = model.project_preview(latents)
            case PreviewMethod.FULL_VAE:
                image = model.decode(latents)
            case _:
                assert_never(request.events.preview_method)
        if not bool(torch.isfinite(image).all()):
            raise NonFiniteOutput(step=trajectory.step)
        encoded = encode_preview(
            pixels_of(image),
            width=width,
            height=height,
            max_side=request.events.preview_max_side,
        )
        trajectory.generation.publish(
            Preview(
                image_index=index,
                step=trajectory.step,
                media_type=encoded.media_type,
                width=encoded.width,
                height=encoded.height,
                data=encoded.data,
            )
        )
