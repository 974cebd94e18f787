"""OpenAI's requests as options of the contract's ``GenerateImageRequest``. Pure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from latentwire_bridge.openai.schema import RANDOM_SEED, EditBody

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire import GenerateOptions, Model
    from latentwire.v1 import image_generation_pb2 as pb
    from latentwire_bridge.openai.schema import ImageBody
    from latentwire_bridge.openai.source_images import SourceImages

MAX_USER_BYTES: Final = 64
MAX_PREVIEW_SIDE: Final = 2_048
"""The contract's maximum: partial images have the images' own size up to it."""
STEPS_BY_QUALITY: Final[Mapping[str, float]] = {
    "draft": 0.4,
    "low": 0.6,
    "high": 1.5,
    "hd": 1.5,
    "xhigh": 2.0,
    "max": 2.0,
}
"""Shares of the model's default steps; other qualities leave these to the server."""
# A JSON answer shows no progress: one event at the end of the steps is enough.
_PROGRESS_INTERVAL_STEPS: Final = 1_000


def changes_default_steps(body: ImageBody) -> bool:
    """Whether the steps follow from the quality and the model's default."""
    return body.num_inference_steps is None and body.quality in STEPS_BY_QUALITY


def steps_for(body: ImageBody, model: Model) -> int:
    """Returns the steps that the request's quality stands for."""
    steps = round(model.defaults.num_inference_steps * STEPS_BY_QUALITY[body.quality])
    return min(max(1, steps), model.limits.max_inference_steps)


def generate_options(
    body: ImageBody,
    *,
    model: str,
    num_inference_steps: int | None = None,
    source: SourceImages | None = None,
) -> GenerateOptions:
    """Returns the options for the server that follow from the request alone.

    Args:
        body: The caller's request.
        model: The model by the server's name; empty for its default.
        num_inference_steps: The steps; None for the model's default.
        source: The image to start from.
    """
    width, height = body.size or (body.width, body.height)
    quality = None
    if body.output_format != "png" and body.output_compression is not None:
        # OpenAI's scale starts at 0, the contract's at 1.
        quality = max(1, body.output_compression)
    user = body.user or body.safety_identifier
    if user is not None and len(user.encode()) > MAX_USER_BYTES:
        user = hashlib.sha256(user.encode()).hexdigest()
    options: GenerateOptions = {
        "model": model,
        "negative_prompt": body.negative_prompt,
        "width": width,
        "height": height,
        "num_images": body.n,
        "seed": None if body.seed == RANDOM_SEED else body.seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": body.guidance_scale,
        "clip_skip": body.clip_skip,
        "high_noise_frac": body.high_noise_frac,
        "high_resolution_fix": body.high_resolution_fix,
        "image_format": body.output_format,
        "quality": quality,
        "user": user,
        "preview_max_side": MAX_PREVIEW_SIDE if body.stream else None,
        "progress_interval_steps": (
            1 if body.stream and body.progress else _PROGRESS_INTERVAL_STEPS
        ),
    }
    if body.scheduler is not None:
        options["scheduler"] = (body.scheduler.id, body.scheduler.sigmas or "")
    if body.loras is not None:
        options["loras"] = [
            (lora.id, 1.0 if lora.scale is None else lora.scale) for lora in body.loras
        ]
    if source is not None:
        options |= {"image": source.image, "mask": source.mask}
    if isinstance(body, EditBody):
        options["strength"] = body.strength
    return options


def preview_options(partial_images: int, accepted: pb.GenerateImageRequest) -> GenerateOptions:
    """Returns what is asked for so that partial images spread evenly over the steps.

    Args:
        partial_images: How many are wanted, at least one.
        accepted: The request with its defaults filled in, as the server accepted it.
    """
    match accepted.WhichOneof("source"):
        case "image_to_image":
            strength = accepted.image_to_image.strength
        case "inpainting":
            strength = accepted.inpainting.strength
        case _:
            strength = 1.0
    # Only this share of the steps is taken, rounded down; 0.7 as a float32 is slightly less.
    num_steps = int(accepted.num_inference_steps * round(strength, 6))
    parts = partial_images + 1
    even = (num_steps + parts // 2) // parts
    return {
        # The last step is the image itself: where there are enough steps, all previews precede it.
        "preview_interval_steps": max(1, min(even, (num_steps - 1) // partial_images)),
        # At most three, so that each can afford the model's own decoder.
        "preview_method": "full-vae",
    }
