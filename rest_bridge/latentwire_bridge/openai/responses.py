"""Finished images as an ``ImagesResponse``, and the parts that streams have in common with it.

Pure. Building a response encodes megabytes as base64: callers use a thread.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latentwire_bridge.openai.errors import CONTENT_POLICY_VIOLATION
from latentwire_bridge.openai.failed_calls import param_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latentwire import Accepted, Image
    from latentwire_bridge.openai.answers import (
        AnswerQuality,
        FileFormat,
        ImageAnswer,
        ImagesAnswer,
        Usage,
        WarningAnswer,
        WithheldAnswer,
    )
    from latentwire_bridge.openai.schema import ImageBody, Quality


_ANSWER_QUALITIES: Final[Mapping[Quality, AnswerQuality]] = {
    "draft": "low",
    "standard": "medium",
    "auto": "medium",
    "hd": "high",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}
"""OpenAI's responses have fewer qualities than its requests, and clients may insist on them."""
_FORMATS: Final[Mapping[str, FileFormat]] = {"image/jpeg": "jpeg", "image/webp": "webp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of a generation."""

    accepted: Accepted | None
    images: tuple[Image, ...]
    withheld: tuple[Image, ...]
    """The images that a safety filter withheld."""
    num_steps: int
    """Denoising steps of each image."""


def answer_quality(body: ImageBody) -> AnswerQuality | None:
    """Returns the quality of the images; None where the caller gave the steps instead."""
    return _ANSWER_QUALITIES[body.quality] if body.num_inference_steps is None else None


def format_of(image: Image) -> FileFormat:
    """Returns an image's file format by OpenAI's name."""
    return _FORMATS.get(image.media_type, "png")


def usage_of(*, num_steps: int) -> Usage:
    """Returns OpenAI's ``usage``, with denoising steps as output tokens."""
    return {
        "total_tokens": num_steps,
        "input_tokens": 0,
        "output_tokens": num_steps,
        "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
    }


def response_body(
    result: Result,
    *,
    created: int,
    urls: Sequence[str | None],
    has_data: bool,
    quality: AnswerQuality | None,
) -> bytes:
    """Returns the JSON of an ``ImagesResponse``.

    Args:
        result: The generation's outcome.
        created: Seconds since 1970.
        urls: The URL of each image, or None.
        has_data: Whether to include the images themselves.
        quality: The quality to report, if any.
    """
    first, num_images = result.images[0], len(result.images) + len(result.withheld)
    revised = revised_prompt(result.accepted)
    data: list[ImageAnswer] = []
    for image, url in zip(result.images, urls, strict=True):
        answer: ImageAnswer = {"seed": image.seed}
        if has_data:
            answer["b64_json"] = base64.b64encode(image.data).decode()
        if url is not None:
            answer["url"] = url
        if revised is not None:
            answer["revised_prompt"] = revised
        data.append(answer)
    body: ImagesAnswer = {
        "created": created,
        "data": data,
        "background": "opaque",
        "output_format": format_of(first),
        "size": f"{first.width}x{first.height}",
        "usage": usage_of(num_steps=result.num_steps * num_images),
    }
    if quality is not None:
        body["quality"] = quality
    warnings: list[WarningAnswer | WithheldAnswer] = [
        *warnings_of(result.accepted),
        *map(withheld_warning, result.withheld),
    ]
    if warnings:
        body["warnings"] = warnings
    return json.dumps(body).encode()


def revised_prompt(accepted: Accepted | None) -> str | None:
    """Returns the part of the prompt that was used; None if that was all of it."""
    for warning in accepted.warnings if accepted else ():
        if warning.field == "prompt" and warning.replacement:
            return warning.replacement
    return None


def warnings_of(accepted: Accepted | None) -> list[WarningAnswer]:
    """Returns the server's warnings, with OpenAI's names for the fields."""
    return [
        {
            "param": param_of(warning.field),
            "code": warning.reason.lower(),
            "message": warning.message,
        }
        for warning in (accepted.warnings if accepted else ())
    ]


def withheld_warning(image: Image) -> WithheldAnswer:
    """Returns the warning for an image that is missing among the others."""
    return {
        "param": None,
        "code": CONTENT_POLICY_VIOLATION,
        "message": f"image {image.index} was withheld by a safety filter",
        "image_index": image.index,
        "seed": image.seed,
    }
