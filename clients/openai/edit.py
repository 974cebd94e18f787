"""Edits one half of an image with today's ``openai``: ``python edit.py``."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

from openai import OpenAI
from PIL import Image


def png(image: Image.Image) -> bytes:
    """Returns an image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Generates a circle, replaces its right half by a star, and writes ``edited.png``."""
    address = os.environ.get("LATENTWIRE_BRIDGE", "http://localhost:9225")
    client = OpenAI(base_url=f"{address}/v1", api_key="random-string")
    generated = client.images.generate(prompt="a red circle on a white background", size="512x512")
    # The image changes where the mask is transparent, and nowhere else.
    mask = Image.new("RGBA", (512, 512), "black")
    mask.paste((0, 0, 0, 0), (256, 0, 512, 512))
    edited = client.images.edit(
        image=("circle.png", base64.b64decode(generated.data[0].b64_json)),
        mask=("mask.png", png(mask)),
        prompt="a green star on a white background",
    )
    Path("edited.png").write_bytes(base64.b64decode(edited.data[0].b64_json))
    print("edited.png")


if __name__ == "__main__":
    main()
