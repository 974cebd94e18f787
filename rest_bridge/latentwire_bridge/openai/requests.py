"""OpenAI's request to the contract's options, and finished images to OpenAI's response. Pure.

Building a response encodes megabytes as base64: callers do it on a thread.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latentwire_bridge.openai.schema import RANDOM_SEED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire import GenerateOptions, Model
    from latentwire_bridge.openai.schema import GenerationBody
    from latentwire_bridge.openai.stream_options import Streaming

MAX_USER_BYTES: Final = 64
MAX_PREVIEW_SIDE: Final = 2_048
"""The contract's limit: a partial image comes at the images' size up to it."""
STEPS_BY_QUALITY: Final[Mapping[str, float]] = {
    "draft": 0.4,
    "low": 0.6,
    "high": 1.5,
    "hd": 1.5,
    "xhigh": 2.0,
    "max": 2.0,
}
"""Shares of the model's default steps; other qualities take those as they are."""
_IMAGE_TO_IMAGE_STRENGTH: Final = 0.8
# A JSON answer shows no progress: one event at the end of the steps is enough.
_PROGRESS_INTERVAL_STEPS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What an edit starts from, as the server wants it."""

    image: bytes | None = None
    mask: bytes | None = None
    """White where it is redrawn."""
    strength: float | None = None

    @property
    def strength_taken(self) -> float:
        """The strength, or the contract's default."""
        default = _IMAGE_TO_IMAGE_STRENGTH if self.mask is None else 1.0
        return default if self.strength is None else self.strength


def depends_on_default_steps(body: GenerationBody) -> bool:
    """Whether a request that names no steps needs to know how many the model takes."""
    return bool(body.stream and body.partial_images) or _share_of_steps(body) != 1.0


def steps_for(body: GenerationBody, model: Model) -> int:
    """Returns the steps that a quality stands for, of a request that names none."""
    steps = round(model.defaults.num_inference_steps * _share_of_steps(body))
    return min(max(1, steps), model.limits.max_inference_steps)


def _share_of_steps(body: GenerationBody) -> float:
    return STEPS_BY_QUALITY.get(body.quality or "auto", 1.0)


def generate_options(
    body: GenerationBody,
    *,
    model: str,
    num_inference_steps: int | None = None,
    pictures: Pictures | None = None,
    streaming: Streaming | None = None,
    request_id: str | None = None,
) -> GenerateOptions:
    """Returns what the server is asked for besides the prompt.

    Args:
        body: The caller's request.
        model: The model by the server's name; empty for its default.
        num_inference_steps: How many steps, where the caller or a quality says so.
        pictures: What it starts from, if from anything.
        streaming: What is shown on the way, if anything.
        request_id: What a repeat has too, if there may be one.
    """
    pictures = pictures or Pictures()
    width, height = body.size or (body.width, body.height)
    is_compressible = body.output_format in ("jpeg", "webp")
    return {
        "model": model,
        "negative_prompt": body.negative_prompt,
        "width": width,
        "height": height,
        "num_images": body.n,
        "seed": None if body.seed == RANDOM_SEED else body.seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": body.guidance_scale,
        "scheduler": _scheduler(body),
        "clip_skip": body.clip_skip,
        "high_noise_frac": body.high_noise_frac,
        "high_resolution_fix": body.high_resolution_fix,
        "loras": _loras(body),
        "image": pictures.image,
        "mask": pictures.mask,
        "strength": pictures.strength,
        "image_format": body.output_format,
        "quality": _quality(body.output_compression) if is_compressible else None,
        "user": _user(body.user or body.safety_identifier),
        "progress_interval_steps": (
            1 if streaming and streaming.wants_progress else _PROGRESS_INTERVAL_STEPS
        ),
        "preview_interval_steps": streaming.preview_interval_steps if streaming else None,
        # There are three at most, so that each can be the picture that the model's decoder makes.
        "preview_method": "full-vae" if streaming and streaming.partial_images else None,
        "preview_max_side": MAX_PREVIEW_SIDE if streaming else None,
        "request_id": request_id,
        # Whoever can come back finds it drawn; for nobody else is it drawn to its end.
        "disconnect_policy": "continue" if request_id else None,
    }


def _scheduler(body: GenerationBody) -> tuple[str, str] | None:
    if body.scheduler is None:
        return None
    return body.scheduler.id, body.scheduler.sigmas or ""


def _loras(body: GenerationBody) -> list[tuple[str, float]] | None:
    if body.loras is None:
        return None
    return [(lora.id, 1.0 if lora.scale is None else lora.scale) for lora in body.loras]


def _quality(output_compression: int | None) -> int | None:
    # OpenAI's scale starts at 0, the contract's at 1.
    return None if output_compression is None else max(1, output_compression)


def _user(user: str | None) -> str | None:
    """Returns the name itself where the contract takes it, else its digest."""
    if user is None or len(user.encode()) <= MAX_USER_BYTES:
        return user
    return hashlib.sha256(user.encode()).hexdigest()
