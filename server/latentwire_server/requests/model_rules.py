"""The rules that only the model itself knows. Any thread; takes milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentwire_server.engine.errors import Violation
from latentwire_server.requests.scheduler_rules import num_steps_of, scheduler_of
from latentwire_server.requests.source_images import MASK_FIELD

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.protocol import ModelSpec
    from latentwire_server.requests.draft import RequestDraft
    from latentwire_server.requests.image_size import ImageSize


def steps_violations(draft: RequestDraft, info: ModelInfo, model: ModelSpec) -> Iterator[Violation]:
    """Yields a violation if the model's scheduler, asked itself, cannot take so many steps."""
    choice, num_steps = scheduler_of(draft, info), num_steps_of(draft, info)
    try:
        model.create_scheduler(choice, num_inference_steps=num_steps)
    except ValueError:
        yield Violation(
            field="num_inference_steps",
            reason="UNSUPPORTED_STEPS",
            description=f"scheduler {choice.id} with sigmas {choice.sigmas}"
            f" cannot take {num_steps} steps",
        )


def mask_violations(
    mask: NDArray[np.uint8], size: ImageSize, model: ModelSpec
) -> Iterator[Violation]:
    """Yields a violation if a mask, as ``cut_mask`` gives it, leaves nothing to generate.

    Its white may have been cut off, or be so fine that it falls between the latents: each of them
    follows one pixel of the mask, as in ``StableDiffusionInpaintPipeline``.
    """
    if not mask.any():
        yield Violation(
            field=MASK_FIELD,
            reason="NOTHING_TO_DRAW",
            description="inpainting.mask selects nothing: nothing would be redrawn",
        )
    elif not size.violations:
        width, height = size.generated
        _, rows, columns = model.latent_shape(width=width, height=height)
        if not mask[:: height // rows, :: width // columns].any():
            yield Violation(
                field=MASK_FIELD,
                reason="NOTHING_TO_DRAW",
                description=f"inpainting.mask selects nothing at {width}x{height}: the model sees"
                f" every {height // rows}th pixel of it; enlarge the selected part",
            )
