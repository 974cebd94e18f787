"""The text that is written into an image file: what to ask for to get the same picture again.

Pure. The request stands under the names of the wire's JSON, so that it can be parsed as one; what
does not change the picture (caller's labels, events, priority) stays out of the file.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import numpy as np

from latentwire_server.engine.request import ImageFormat

if TYPE_CHECKING:
    from latentwire_server.engine.request import GenerationRequest


def describe(
    request: GenerationRequest, *, index: int, version: str, model_revision: str
) -> str | None:
    """Returns the JSON text for image ``index``, or ``None`` if the caller wants none."""
    if request.output.metadata_omitted:
        return None
    width, height = request.file_size
    output: dict[str, object] = {"format": f"IMAGE_FORMAT_{request.output.format.name}"}
    if request.output.format is not ImageFormat.PNG:
        output["quality"] = request.output.quality
    return json.dumps(
        _as_written(
            {
                "latentwire": version,
                "model_revision": model_revision,
                "request": {
                    "model": request.model,
                    "prompt": request.prompt,
                    "negative_prompt": request.negative_prompt,
                    "width": width,
                    "height": height,
                    "num_images": 1,
                    "seed": request.seeds[index],
                    "num_inference_steps": request.num_inference_steps,
                    "guidance_scale": request.guidance_scale,
                    "scheduler": {"id": request.scheduler.id, "sigmas": request.scheduler.sigmas},
                    "clip_skip": request.clip_skip,
                    **_refining(request),
                    **_loras(request),
                    "output": output,
                    **_source(request),
                },
            }
        ),
        ensure_ascii=False,
    )


def _as_written(value: object) -> object:
    """Returns it with the shortest numbers that mean the same on the wire: 0.3, not 0.30000001192.

    The wire's fractions are float32.
    """
    match value:
        case dict():
            return {name: _as_written(inner) for name, inner in value.items()}
        case list():
            return [_as_written(inner) for inner in value]
        case float():
            return float(str(np.float32(value)))
        case _:
            return value


def _refining(request: GenerationRequest) -> dict[str, object]:
    share, fix = request.high_noise_frac, request.high_resolution_fix
    refined: dict[str, object] = {} if share is None else {"high_noise_frac": share}
    if fix is None:
        is_disabled = request.high_resolution_fix_disabled
        return {**refined, **({"high_resolution_fix": {"disabled": True}} if is_disabled else {})}
    first_pass = {"strength": fix.strength, "width": fix.width, "height": fix.height}
    return {**refined, "high_resolution_fix": first_pass}


def _loras(request: GenerationRequest) -> dict[str, object]:
    if not request.loras:
        return {}
    return {"loras": [{"id": lora.id, "scale": lora.scale} for lora in request.loras]}


def _source(request: GenerationRequest) -> dict[str, object]:
    """Returns what the drawing started from; of the files, which would not fit, their digests."""
    source = request.source
    if source is None:
        return {}
    image = {"image": {"sha256": base64.b64encode(source.image_sha256).decode()}}
    if source.mask is None:
        return {"image_to_image": {**image, "strength": source.strength}}
    mask = {"mask": {"sha256": base64.b64encode(source.mask_sha256).decode()}}
    inverted = {"mask_inverted": source.mask_inverted, "strength": source.strength}
    return {"inpainting": {**image, **mask, **inverted}}
