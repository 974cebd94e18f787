"""A request held against the model itself, which knows more than what it says about itself.

Pure but for the caller's files, which are opened here: on any thread but the event loop's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentwire_server.engine.admission import warnings_of
from latentwire_server.engine.errors import InvalidRequest, Violation
from latentwire_server.sources import mask_violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from latentwire_server.engine import types
    from latentwire_server.engine.types import GenerationRequest
    from latentwire_server.models.model import ModelOutline


def examined(
    complete_: Callable[[], GenerationRequest], model: ModelOutline
) -> tuple[GenerationRequest, tuple[types.Warning, ...]]:
    """Returns the request and what its caller should know about it, asking the model itself.

    Takes milliseconds, and with pictures more: not for the event loop.

    Raises:
        InvalidRequest: it breaks rules, or some that only the model knows: its sampler cannot take
            that many steps, or nothing of its latents lies in the mask.
    """
    request = complete_()
    found = [
        one for one in (_steps_violation(request, model), _mask_violation(request, model)) if one
    ]
    if found:
        raise InvalidRequest(tuple(found))
    return request, warnings_of(request, model)


def _steps_violation(request: GenerationRequest, model: ModelOutline) -> Violation | None:
    choice, num_steps = request.scheduler, request.num_inference_steps
    try:
        model.create_scheduler(choice, num_inference_steps=num_steps)
    except ValueError:
        return Violation(
            field="num_inference_steps",
            reason="UNSUPPORTED_STEPS",
            description=f"scheduler {choice.id} with sigmas {choice.sigmas}"
            f" cannot take {num_steps} steps",
        )
    return None


def _mask_violation(request: GenerationRequest, model: ModelOutline) -> Violation | None:
    if request.source is None:
        return None
    _, *latent_size = model.latent_shape(width=request.width, height=request.height)
    return mask_violation(request.source, latent_size=latent_size)
