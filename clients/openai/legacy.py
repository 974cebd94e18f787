"""Generates an image through the REST bridge with ``openai==0.28.1``: ``python legacy.py``."""

import base64
import io
import os

import openai
from PIL import Image


def main() -> None:
    """Writes one image to ``square.png``."""
    address = os.environ.get("LATENTWIRE_BRIDGE", "http://localhost:9225")
    openai.api_base = f"{address}/v1"
    openai.api_key = "random-string"
    response = openai.Image.create(
        prompt="a yellow square on a green background", n=1, size="512x512"
    )
    encoded = response["data"][0]["b64_json"]
    image = Image.open(io.BytesIO(base64.decodebytes(encoded.encode())))
    image.save("square.png")
    print("square.png")


if __name__ == "__main__":
    main()
