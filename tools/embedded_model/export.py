"""Writes the trained parts as a standard diffusers folder, float16 safetensors only."""

import json
import random
import shutil
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor

from tools.embedded_model.scenes.render import as_array, render
from tools.embedded_model.scenes.scene import random_scene
from tools.embedded_model.training.denoiser import Denoiser, build_scheduler
from tools.embedded_model.training.latents import NATIVE, encode
from tools.embedded_model.training.text_encoder import load_tokenizer

# The defaults of requests: the best ones that `evaluate` measured.
SETTINGS: Final = {
    "display_name": "Latentwire's embedded model",
    "defaults": {"num_inference_steps": 20, "guidance_scale": 2.8},
}
_NUM_PREVIEW_IMAGES = 192


def export(
    folder: Path, *, vae: AutoencoderTiny, tokenizer_folder: Path, trained: Denoiser
) -> None:
    """Replaces the whole folder at once, so that a reader never sees a mixture of two models."""
    temporary = folder.with_name(folder.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    preview = fit_preview(vae)
    # A copy in float16; training continues with its own float32 weights.
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=trained.text_encoder,
        tokenizer=load_tokenizer(tokenizer_folder),
        unet=trained.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16)
    pipeline.save_pretrained(temporary, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):
        # transformers 5 only writes tokenizer.json; older versions read these two.
        shutil.copy(tokenizer_folder / name, temporary / "tokenizer" / name)
    (temporary / "latentwire.json").write_text(json.dumps(SETTINGS, indent=2) + "\n")
    (temporary / "preview.json").write_text(json.dumps(preview, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for path in temporary.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors lets only the owner read its files
    temporary.rename(folder)


def fit_preview(vae: AutoencoderTiny) -> dict[str, list[list[float]] | list[float]]:
    """Fits RGB = latents @ factors + bias by least squares over rendered images.

    Latents are in model space, RGB is in [-1, 1]; each latent is paired with the mean of its 8x8
    pixels.
    """
    rng = random.Random("preview")
    scenes = [random_scene(rng) for _ in range(_NUM_PREVIEW_IMAGES)]
    latents = torch.cat(list(encode(vae, NATIVE, scenes)))
    images = np.stack([as_array(render(row, width=NATIVE[0], height=NATIVE[1])) for row in scenes])
    colours = torch.nn.functional.avg_pool2d(torch.from_numpy(images), 8)
    inputs = _by_pixel(latents)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    solution = torch.linalg.lstsq(inputs.double(), _by_pixel(colours).double()).solution
    rounded = [[round(value, 5) for value in row] for row in solution.tolist()]
    return {"latent_rgb_factors": rounded[:4], "latent_rgb_bias": rounded[4]}


def _by_pixel(planes: Tensor) -> Tensor:
    return planes.permute(0, 2, 3, 1).flatten(0, 2)
