"""Makes the README's figure of one generation: previews at several steps, then the image.

``python -m tools.forming_image`` needs a server with the embedded model on the default port.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

import latentwire

TARGET: Final = Path(__file__).parent.parent / "docs/images/forming.png"
PROMPT: Final = "an orange star in the top left corner on a black background"
SEED: Final = 5
STEPS: Final = (1, 2, 3, 6, 9)
"""The steps whose previews are shown, before the finished image."""
TILE: Final = 160
CAPTION: Final = 24


def forming_strip(client: latentwire.Client) -> Image.Image:
    """Generates the image; returns the strip, with a caption under each tile."""
    tiles: list[tuple[str, bytes]] = []
    with client.stream(
        PROMPT, seed=SEED, preview_interval_steps=1, preview_method="full-vae"
    ) as events:
        for event in events:
            match event:
                case latentwire.Preview(step=step) if step in STEPS:
                    tiles.append((f"step {step}", event.data))
                case latentwire.Image():
                    tiles.append(("finished", event.data))
    strip = Image.new("RGB", (len(tiles) * (TILE + 4) - 4, TILE + CAPTION), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size=14)
    for index, (caption, data) in enumerate(tiles):
        left = index * (TILE + 4)
        with Image.open(io.BytesIO(data)) as tile:
            strip.paste(
                tile.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS), (left, 0)
            )
        middle = (left + TILE // 2, TILE + CAPTION // 2)
        draw.text(middle, caption, fill="#555555", font=font, anchor="mm")
    return strip


if __name__ == "__main__":
    with latentwire.Client() as client:
        forming_strip(client).quantize(128).save(TARGET, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")
