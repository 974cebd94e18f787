"""What a reader hears of a running trajectory: progress and previews.

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
    """Publishes how far the trajectory is, and how long the rest takes.

    Args:
        trajectory: Whose it is.
        phase: What it is in.
        estimator: Who knows.
        rows: What one round evaluates, by group, the trajectory's own rows among it.
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
    """Publishes each image as predicted at this step.

    Args:
        trajectory: Whose it is.
        original: (images, channels, height, width) float32, the predicted x₀.

    Raises:
        NonFiniteOutput: the prediction cannot be shown.
    """
    request = trajectory.request
    width, height = request.file_size
    for index in range(request.num_images):
        if trajectory.generation.is_ended:
            return  # A decoder takes seconds: whoever left meanwhile is not waited for.
        picture = _picture(trajectory, original[index : index + 1])
        if not bool(torch.isfinite(picture).all()):
            raise NonFiniteOutput(step=trajectory.step)
        encoded = encode_preview(
            pixels_of(picture),
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


def _picture(trajectory: Trajectory, original: torch.Tensor) -> torch.Tensor:
    model, method = trajectory.model, trajectory.request.events.preview_method
    match method:
        case PreviewMethod.LINEAR:
            return model.project_preview(original)
        case PreviewMethod.FULL_VAE:
            return model.decode(original)
        case _:
            assert_never(method)
