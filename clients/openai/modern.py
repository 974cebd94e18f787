"""Generates an image through the REST bridge with today's ``openai``: ``python modern.py``."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from openai import OpenAI


def main() -> None:
    """Writes one image to ``ring.png``."""
    address = os.environ.get("LATENTWIRE_BRIDGE", "http://localhost:9225")
    client = OpenAI(base_url=f"{address}/v1", api_key="random-string")
    response = client.images.generate(
        model="dall-e-3",
        prompt="a purple ring on a white background",
        size="512x512",
        response_format="b64_json",
        # Fields that OpenAI's API lacks go here, by diffusers' names.
        extra_body={"num_inference_steps": 20, "seed": 3, "scheduler": "euler"},
    )
    Path("ring.png").write_bytes(base64.b64decode(response.data[0].b64_json))
    print("ring.png")


if __name__ == "__main__":
    main()
