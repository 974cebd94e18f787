"""Finished images as the body of an OpenAI Images response."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latentwire_bridge.openai.errors import CONTENT_POLICY_VIOLATION, param_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latentwire import Accepted, Image, RequestWarning
    from latentwire_bridge.openai.answers import (
        ImageAnswer,
        ImagesAnswer,
        OutputFormat,
        ToldQuality,
        Usage,
        WarningAnswer,
        WithheldAnswer,
    )
    from latentwire_bridge.openai.schema import GenerationBody, Quality


_TOLD: Final[Mapping[Quality, ToldQuality]] = {
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
"""OpenAI's responses know fewer qualities than its requests, and clients may insist on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a generation gave."""

    accepted: Accepted | None
    images: tuple[Image, ...]
    withheld: tuple[Image, ...] = ()
    """Those that a safety filter withheld."""
    num_steps: int
    """Denoising steps of each."""


def quality_told(body: GenerationBody) -> ToldQuality | None:
    """Returns the quality of what was drawn; None where the caller's own steps decided instead."""
    return _TOLD[body.quality or "auto"] if body.num_inference_steps is None else None


def format_of(image: Image) -> OutputFormat:
    """Returns an image's file format by OpenAI's name."""
    match image.media_type:
        case "image/jpeg":
            return "jpeg"
        case "image/webp":
            return "webp"
        case _:
            return "png"


def usage_of(*, num_steps: int) -> Usage:
    """Returns OpenAI's ``usage``; nothing counts in tokens here, but denoising steps as output."""
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
    is_b64_wanted: bool,
    quality: ToldQuality | None,
) -> bytes:
    """Returns the JSON of an ``ImagesResponse``.

    Args:
        result: The images.
        created: Seconds since 1970.
        urls: The address of each image; None where there is none.
        is_b64_wanted: Whether the images themselves are part of the response.
        quality: As ``quality_told`` names it.
    """
    first, num_drawn = result.images[0], len(result.images) + len(result.withheld)
    revised = revised_prompt(result.accepted)
    body: ImagesAnswer = {
        "created": created,
        "data": [
            _datum(image, url=url, is_b64_wanted=is_b64_wanted, revised=revised)
            for image, url in zip(result.images, urls, strict=True)
        ],
        "background": "opaque",
        "output_format": format_of(first),
        "size": f"{first.width}x{first.height}",
        "usage": usage_of(num_steps=result.num_steps * num_drawn),
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


def _datum(
    image: Image, *, url: str | None, is_b64_wanted: bool, revised: str | None
) -> ImageAnswer:
    datum: ImageAnswer = {"seed": image.seed}
    if is_b64_wanted:
        datum["b64_json"] = base64.b64encode(image.data).decode()
    if url is not None:
        datum["url"] = url
    if revised is not None:
        datum["revised_prompt"] = revised
    return datum


def revised_prompt(accepted: Accepted | None) -> str | None:
    """Returns what was read of a prompt, by OpenAI's name; None where all of it was."""
    for warning in accepted.warnings if accepted else ():
        if warning.field == "prompt" and warning.replacement:
            return warning.replacement
    return None


def withheld_warning(image: Image) -> WithheldAnswer:
    """Returns how it is told that an image is missing among the others."""
    return {
        "param": None,
        "code": CONTENT_POLICY_VIOLATION,
        "message": f"image {image.index} was withheld by a safety filter",
        "image_index": image.index,
        "seed": image.seed,
    }


def warnings_of(accepted: Accepted | None) -> list[WarningAnswer]:
    """Returns what the server does differently from what a caller may expect."""
    return [_warning(warning) for warning in accepted.warnings] if accepted else []


def _warning(warning: RequestWarning) -> WarningAnswer:
    return {
        "param": param_of(warning.field),
        "code": warning.reason.lower(),
        "message": warning.message,
    }
