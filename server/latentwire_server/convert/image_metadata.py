"""The JSON that is written into an image file: the request that generates the same image again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from google.protobuf.json_format import MessageToDict

from latentwire_server.convert.requests import effective_request

if TYPE_CHECKING:
    from latentwire_server.engine.request import GenerationRequest

_NOT_WRITTEN: Final = ("events", "disconnect_policy", "priority", "user", "labels")
"""Fields that do not change the image, or are private to the caller."""


def describe_image(
    request: GenerationRequest, index: int, model_revision: str, *, version: str
) -> str | None:
    """Returns the text for image ``index``, or None if the caller wants none in the file.

    The request in it parses as a ``GenerateImageRequest`` for that one image. Source images
    would not fit, so it has their digests instead.
    """
    if request.output.metadata_omitted:
        return None
    message = effective_request(request)
    message.num_images, message.seed = 1, request.seeds[index]
    message.output.ClearField("max_data_bytes")
    for name in _NOT_WRITTEN:
        message.ClearField(name)
    fields = MessageToDict(message, preserving_proto_field_name=True)
    # Protobuf leaves out what is empty or false, and writes numbers of 64 bits as strings.
    fields = {"model": "", "prompt": "", "negative_prompt": ""} | fields | {"seed": message.seed}
    if "inpainting" in fields:
        part = {"image": {}, "mask": {}, "mask_inverted": False} | fields["inpainting"]
        fields["inpainting"] = part
    # Files have had these last since version 0.1.0.
    for name in ("loras", "output", "image_to_image", "inpainting"):
        if name in fields:
            fields[name] = fields.pop(name)
    described = {"latentwire": version, "model_revision": model_revision, "request": fields}
    return json.dumps(described, ensure_ascii=False)
