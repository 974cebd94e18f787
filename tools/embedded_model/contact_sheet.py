"""Makes the contact sheet in the documentation."""

import json
from pathlib import Path
from typing import Final

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

PROMPTS: Final[tuple[str, ...]] = (
    "a red circle on a blue background",
    "a yellow star on a black background",
    "a small green triangle in the top left corner on a white background",
    "a large pink heart on a cyan background",
    "a purple ring on the right on a yellow background",
    "an orange crescent at the bottom on a purple background",
    "a red circle above a blue square on a white background",
    "a green diamond to the left of an orange cross on a black background",
    "a white star below a yellow heart on a red background",
    "a black square to the right of a cyan triangle on a gray background",
    "oil painting of a blue heart, highly detailed, 4k",
    "a cute baby sea otter",
)
_SIDE = 192
_CAPTION = 34
_COLUMNS = 4


def write(model: Path, path: Path) -> None:
    """Generates an image for each prompt and writes them to `path`, with captions."""
    defaults = json.loads((model / "latentwire.json").read_text())["defaults"]
    pipeline = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
    pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    rows = -(-len(PROMPTS) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _SIDE, rows * (_SIDE + _CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    images = pipeline(
        list(PROMPTS),
        **defaults,
        generator=[torch.Generator().manual_seed(7 + index) for index in range(len(PROMPTS))],
    ).images
    for index, (prompt, image) in enumerate(zip(PROMPTS, images, strict=True)):
        left = index % _COLUMNS * _SIDE
        top = index // _COLUMNS * (_SIDE + _CAPTION)
        frame = image.resize((_SIDE - 4, _SIDE - 4), Image.Resampling.LANCZOS)
        sheet.paste(frame, (left + 2, top + 2))
        draw.multiline_text((left + 4, top + _SIDE), _wrapped(prompt), fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def _wrapped(prompt: str, *, width: int = 34) -> str:
    lines = [""]
    for word in prompt.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
