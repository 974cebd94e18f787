"""The scripted server's generations in the tests of the command line."""

from __future__ import annotations

import json

import numpy as np

from latentwire.v1 import image_generation_pb2 as pb
from latentwire_server.imaging.encode import encode_image, encode_preview
from tests.support.client.scripted_server import accepted, completed, image, numbered, progress

PIXELS = np.full((8, 8, 3), (200, 0, 0), np.uint8)
DESCRIPTION = json.dumps(
    {
        "latentwire": "1.0",
        "model_revision": "sha256:1",
        "request": {"prompt": "a red fox 🦊", "seed": 7, "scheduler": {"id": "euler"}},
    },
    ensure_ascii=False,
)
FORMATS = {pb.IMAGE_FORMAT_JPEG: "jpeg", pb.IMAGE_FORMAT_WEBP: "webp"}


def image_file(image_format: str = "png") -> bytes:
    return encode_image(PIXELS, image_format=image_format, quality=90, description=DESCRIPTION).data


def generate(request: pb.GenerateImageRequest) -> list:
    image_format = FORMATS.get(request.output.format, "png")
    num_images = request.num_images or 1
    preview = encode_preview(PIXELS, width=8, height=8, max_side=8)
    shows_previews = request.events.preview_interval_steps > 0
    return numbered(
        accepted(seeds=range(7, 7 + num_images)),
        pb.GenerateImageResponse(queued=pb.Queued(ahead_count=3)),
        progress(1, 2),
        *([pb.GenerateImageResponse(preview=pb.Preview(data=preview.data))] * shows_previews),
        progress(2, 2),
        *(
            image(image_file(image_format), index=index, media_type=f"image/{image_format}")
            for index in range(num_images)
        ),
        completed(num_images),
    )
