"""The latents of the denoiser's training images, stored on disk in chunks.

Training starts with a few chunks and adds one from time to time. Encoding takes about 25 ms per
image, too long to repeat for each row, and the denoiser never memorises a pool that grows.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.embedded_model.scenes.render import as_array, render
from tools.embedded_model.scenes.scene import Scene, random_scene

Size: TypeAlias = tuple[int, int]

NATIVE: Final[Size] = (256, 256)
SMALL: Final[Size] = (128, 128)
# The number of images of each (width, height) in one chunk.
SMALL_CHUNK: Final[dict[Size, int]] = {SMALL: 1200}
CHUNK: Final[dict[Size, int]] = {NATIVE: 448, (512, 512): 32, (384, 256): 20, (256, 384): 20}
_ENCODE_ROWS = 4


class LatentPool:
    """Scenes with their latents in model space, by image size; grows chunk by chunk."""

    def __init__(
        self, vae: AutoencoderTiny, folder: Path, *, chunk: dict[Size, int], seed: int
    ) -> None:
        """Starts empty; reads the chunks that `folder` already has instead of encoding them."""
        self._vae = vae
        self._folder = folder
        self._chunk = chunk
        self._seed = seed
        self._num_chunks = 0
        self._scenes: dict[Size, list[Scene]] = {size: [] for size in chunk}
        self._latents: dict[Size, list[Tensor]] = {size: [] for size in chunk}
        folder.mkdir(parents=True, exist_ok=True)

    def grow_to(self, num_chunks: int) -> None:
        """Adds chunks until there are `num_chunks`."""
        while self._num_chunks < num_chunks:
            self._add_chunk(self._num_chunks)
            self._num_chunks += 1

    def rows(self, size: Size, num_rows: int, rng: random.Random) -> tuple[list[Scene], Tensor]:
        """Picks rows at random; returns their scenes and (rows, 4, height/8, width/8) float32."""
        picks = rng.choices(range(len(self._scenes[size])), k=num_rows)
        latents = torch.stack([self._latents[size][pick] for pick in picks])
        return [self._scenes[size][pick] for pick in picks], latents.float()

    def _add_chunk(self, index: int) -> None:
        path = self._folder / f"latents-{index:04d}.safetensors"
        scenes = {
            size: [random_scene(rng) for _ in range(count)]
            for size, count in self._chunk.items()
            for rng in [random.Random(f"chunk {self._seed} {index} {size}")]
        }
        if not path.exists():
            save_file(
                {_name(size): self._encode(size, items) for size, items in scenes.items()}, path
            )
        tensors = load_file(path)
        for size, items in scenes.items():
            self._scenes[size].extend(items)
            self._latents[size].extend(tensors[_name(size)])

    def _encode(self, size: Size, scenes: list[Scene]) -> Tensor:
        return torch.cat(
            [latents.half() for latents in encode(self._vae, size, scenes)]
        ).contiguous()


@torch.no_grad()
def encode(vae: AutoencoderTiny, size: Size, scenes: list[Scene]) -> Iterator[Tensor]:
    """Yields latents in model space, `(rows, 4, height/8, width/8)`, a few rows at a time."""
    width, height = size
    for start in range(0, len(scenes), _ENCODE_ROWS):
        rows = scenes[start : start + _ENCODE_ROWS]
        images = np.stack([as_array(render(row, width=width, height=height)) for row in rows])
        yield vae.encode(torch.from_numpy(images)).latents * vae.config.scaling_factor


def _name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
