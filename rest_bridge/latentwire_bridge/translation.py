"""OpenAI's request to the contract's options, and finished images to OpenAI's response. Pure.

Building a response encodes megabytes as base64: callers do it on a thread.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latentwire_bridge.schema import RANDOM_SEED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latentwire import Accepted, GenerateOptions, Image, RequestWarning
    from latentwire_bridge.schema import GenerationBody

MAX_USER_BYTES: Final = 64
# A JSON answer shows no progress: one event at the end of the steps is enough.
_PROGRESS_INTERVAL_STEPS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a generation gave."""

    accepted: Accepted | None
    images: tuple[Image, ...]
    """Without those that a safety filter withheld."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """What an edit starts from, as the server wants it."""

    image: bytes | None = None
    mask: bytes | None = None
    """White where it is redrawn."""
    strength: float | None = None


def generate_options(
    body: GenerationBody, *, model: str, pictures: Pictures | None = None
) -> GenerateOptions:
    """Returns what the server is asked for besides the prompt.

    Args:
        body: The caller's request.
        model: The model by the server's name; empty for its default.
        pictures: What it starts from, if from anything.
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
        "num_inference_steps": body.num_inference_steps,
        "guidance_scale": body.guidance_scale,
        "scheduler": _scheduler(body),
        "clip_skip": body.clip_skip,
        "image": pictures.image,
        "mask": pictures.mask,
        "strength": pictures.strength,
        "image_format": body.output_format,
        "quality": _quality(body.output_compression) if is_compressible else None,
        "user": _user(body.user or body.safety_identifier),
        "progress_interval_steps": _PROGRESS_INTERVAL_STEPS,
    }


def _scheduler(body: GenerationBody) -> tuple[str, str] | None:
    if body.scheduler is None:
        return None
    return body.scheduler.id, body.scheduler.sigmas or ""


def _quality(output_compression: int | None) -> int | None:
    # OpenAI's scale starts at 0, the contract's at 1.
    return None if output_compression is None else max(1, output_compression)


def _user(user: str | None) -> str | None:
    """Returns the name itself where the contract takes it, else its digest."""
    if user is None or len(user.encode()) <= MAX_USER_BYTES:
        return user
    return hashlib.sha256(user.encode()).hexdigest()


def response_body(
    result: Result, *, created: int, urls: Sequence[str | None], is_b64_wanted: bool
) -> bytes:
    """Returns the JSON of an ``ImagesResponse``.

    Args:
        result: The images.
        created: Seconds since 1970.
        urls: The address of each image; None where there is none.
        is_b64_wanted: Whether the images themselves are part of the response.
    """
    first = result.images[0]
    body: dict[str, object] = {
        "created": created,
        "data": [
            _datum(image, url=url, is_b64_wanted=is_b64_wanted)
            for image, url in zip(result.images, urls, strict=True)
        ],
        "background": "opaque",
        "output_format": first.media_type.removeprefix("image/"),
        "size": f"{first.width}x{first.height}",
    }
    if result.accepted is not None and result.accepted.warnings:
        body["warnings"] = [_warning(warning) for warning in result.accepted.warnings]
    return json.dumps(body).encode()


def _datum(image: Image, *, url: str | None, is_b64_wanted: bool) -> Mapping[str, object]:
    datum: dict[str, object] = {}
    if is_b64_wanted:
        datum["b64_json"] = base64.b64encode(image.data).decode()
    if url is not None:
        datum["url"] = url
    datum["seed"] = image.seed
    return datum


def _warning(warning: RequestWarning) -> Mapping[str, str]:
    return {"param": warning.field, "code": warning.reason.lower(), "message": warning.message}
