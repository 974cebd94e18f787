"""Image files as callers of the bridge send them: plain images, masks, data: URLs."""

from __future__ import annotations

import base64
import io

from PIL import Image

RED = (200, 40, 40)


def plain_image(width: int = 64, height: int = 64) -> Image.Image:
    return Image.new("RGB", (width, height), RED)


def half_transparent(colour: tuple[int, int, int] = RED) -> Image.Image:
    """Returns a mask as OpenAI defines it: the transparent right half is to be edited."""
    image = Image.new("RGBA", (64, 64), (*colour, 255))
    image.paste((*colour, 0), (32, 0, 64, 64))
    return image


def half_white() -> Image.Image:
    """Returns a mask without transparency: the white right half is to be edited."""
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    return mask


def file_of(image: Image.Image, file_format: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, file_format)
    return out.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
