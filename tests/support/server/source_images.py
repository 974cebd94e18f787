"""Requests that start from an image."""

from __future__ import annotations

import io

from PIL import Image

from latentwire.v1 import image_generation_pb2 as pb
from tests.support.server.serving import request


def two_coloured(width: int = 64, height: int = 64) -> Image.Image:
    image = Image.new("RGB", (width, height), (200, 40, 40))
    image.paste((30, 60, 220), (0, 0, width // 2, height))
    return image


def file_of(image: Image.Image, file_format: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, file_format)
    return out.getvalue()


def from_image(image: Image.Image | None = None, **fields: object) -> pb.GenerateImageRequest:
    options = {"strength": fields.pop("strength")} if "strength" in fields else {}
    data = file_of(image or two_coloured())
    source = pb.ImageToImage(image=pb.InputImage(data=data), **options)
    return request(image_to_image=source, **fields)
