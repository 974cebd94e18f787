"""The text that is written into an image file: what to ask for to get the same picture again.

Pure. The request stands under the names of the wire's JSON, so that it can be parsed as one; what
does not change the picture (caller's labels, events, priority) stays out of the file.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from latentwire_server.engine.types import ImageFormat

if TYPE_CHECKING:
    from latentwire_server.engine.types import GenerationRequest


def describe(
    request: GenerationRequest, *, index: int, version: str, model_revision: str
) -> str | None:
    """Returns the JSON text for image ``index``, or ``None`` if the caller wants none."""
    if request.output.metadata_omitted:
        return None
    output: dict[str, object] = {"format": f"IMAGE_FORMAT_{request.output.format.name}"}
    if request.output.format is not ImageFormat.PNG:
        output["quality"] = request.output.quality
    return json.dumps(
        {
            "latentwire": version,
            "model_revision": model_revision,
            "request": {
                "model": request.model,
                "prompt": request.prompt,
                "negative_prompt": request.negative_prompt,
                "width": request.width,
                "height": request.height,
                "num_images": 1,
                "seed": request.seeds[index],
                "num_inference_steps": request.num_inference_steps,
                "guidance_scale": request.guidance_scale,
                "scheduler": {"id": request.scheduler.id, "sigmas": request.scheduler.sigmas},
                "clip_skip": request.clip_skip,
                "output": output,
            },
        },
        ensure_ascii=False,
    )
