"""Trains the autoencoder: images to latents, eight times smaller, and back.

It has no norm layers (AutoencoderTiny has none): with GroupNorm a flat image loses its colour. A
pipeline can only undo one scalar `scaling_factor`, so training itself pushes the latent channels
towards zero mean, unit variance and no correlation.
"""

import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn
from torch.nn import functional

from tools.embedded_model.scenes.render import as_array, render
from tools.embedded_model.scenes.scene import Scene, random_scene
from tools.embedded_model.scenes.vocabulary import SHAPES
from tools.embedded_model.training import checkpoint

logger = logging.getLogger(__name__)

WIDTH = 32
CROP = 96
BATCH = 16
_SAVE_EVERY = 100
_POINTED_SHAPES = ("star", "triangle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of training with its own warm-up and decay."""

    num_steps: int
    learning_rate: float
    latent_noise: float
    canvas_sides: tuple[int, ...]
    edge_weight: float = 0.0
    trains_encoder: bool = True
    point_share: float = 0.0
    """The share of crops that are sure to show a shape with points."""


# Colours come first. Then corners, on small canvases, where a crop has more of them, and with less
# noise. Then corners alone: they are a few per cent of the pixels, too little for an unweighted
# loss.
PHASES = (
    Phase(
        num_steps=900,
        learning_rate=1.5e-3,
        latent_noise=0.08,
        canvas_sides=(192, 256, 256, 384, 512),
    ),
    Phase(
        num_steps=550,
        learning_rate=1.5e-3,
        latent_noise=0.04,
        canvas_sides=(160, 192, 224, 256, 256, 384),
    ),
    Phase(
        num_steps=360,
        learning_rate=1.5e-3,
        latent_noise=0.03,
        canvas_sides=(128, 160, 192, 256),
        edge_weight=6.0,
    ),
    Phase(
        num_steps=1500,
        learning_rate=1.5e-3,
        latent_noise=0.03,
        canvas_sides=(160, 192, 256, 256),
        # The points of a star are learned last.
        edge_weight=10.0,
        point_share=0.6,
        # The latents must not change: a denoiser may have learned them already.
        trains_encoder=False,
    ),
)
NUM_STEPS = sum(phase.num_steps for phase in PHASES)


def build() -> AutoencoderTiny:
    """Builds the untrained autoencoder; its residual blocks start near the identity."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        # No block at full resolution in the encoder: it would be most of the cost of encoding.
        num_encoder_blocks=(0, 1, 1, 3),
        # Nor in the decoder: features at half resolution represent four pixels well enough.
        num_decoder_blocks=(5, 3, 2, 0),
        latent_channels=4,
    )
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in vae.modules():
        if isinstance(module, AutoencoderTinyBlock):
            last = module.conv[-1]
            with torch.no_grad():
                last.weight.mul_(0.1)
    return vae


def train(path: Path, *, seed: int = 0) -> AutoencoderTiny:
    """Trains through all phases, or continues from the checkpoint at `path`; returns the model."""
    torch.manual_seed(seed)
    vae = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), weight_decay=1e-4)
    step = 0
    state = checkpoint.load(path)
    if state is not None:
        vae.load_state_dict(state["vae"])
        vae.register_to_config(scaling_factor=state["scaling_factor"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    started = time.monotonic()
    while step < NUM_STEPS:
        phase, progress = _position(step)
        vae.encoder.requires_grad_(phase.trains_encoder)
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * _one_cycle(progress)
        loss = _loss(vae, _crops(phase, f"{seed} {step}"), phase, seed=step)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % _SAVE_EVERY == 0 or step == NUM_STEPS:
            error, scaling_factor, means = _measure(vae, seed)
            vae.register_to_config(scaling_factor=scaling_factor)
            logger.info(
                "autoencoder step=%d l1=%.4f scaling_factor=%.4f means=%s elapsed_s=%.0f",
                *(step, error, scaling_factor, means, time.monotonic() - started),
            )
            checkpoint.save(
                path,
                {
                    "vae": vae.state_dict(),
                    "scaling_factor": scaling_factor,
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                },
            )
    return vae.eval().requires_grad_(requires_grad=False)


def _position(step: int) -> tuple[Phase, float]:
    """Returns the phase of a step, and its progress through the phase, 0 to 1."""
    for phase in PHASES:
        if step < phase.num_steps:
            return phase, step / phase.num_steps
        step -= phase.num_steps
    return PHASES[-1], 1.0


def _one_cycle(progress: float) -> float:
    """Rises to 1 over the first tenth, then falls to 0 along a cosine."""
    if progress < 0.1:
        return 0.04 + 0.96 * progress / 0.1
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


def _crops(phase: Phase, seed: str) -> Tensor:
    """Returns (BATCH, 3, CROP, CROP) float32; most crops show an object's edge."""
    rng = random.Random(f"crops {seed}")
    crops = []
    for _ in range(BATCH):
        side = rng.choice(phase.canvas_sides)
        shapes = _POINTED_SHAPES if rng.random() < phase.point_share else SHAPES
        crops.append(_crop(rng, side, shapes=shapes))
    return torch.from_numpy(np.stack(crops))


def _crop(rng: random.Random, side: int, *, shapes: Sequence[str]) -> npt.NDArray[np.float32]:
    scene = random_scene(rng)
    while not any(item.shape in shapes for item in scene.objects):
        scene = random_scene(rng)
    left, top = _crop_corner(rng, scene, side, shapes=shapes)
    image = render(scene, width=side, height=side)
    return as_array(image.crop((left, top, left + CROP, top + CROP)))


def _crop_corner(
    rng: random.Random, scene: Scene, side: int, *, shapes: Sequence[str]
) -> tuple[int, int]:
    item = rng.choice([item for item in scene.objects if item.shape in shapes])
    reach = item.radius * rng.uniform(0, 1.4)
    angle = np.pi * rng.uniform(-1, 1)
    centre_x = (item.x + reach * np.cos(angle)) * side
    centre_y = (item.y + reach * np.sin(angle)) * side
    return tuple(
        min(max(round(centre - CROP / 2), 0), side - CROP) for centre in (centre_x, centre_y)
    )


def _loss(vae: AutoencoderTiny, images: Tensor, phase: Phase, *, seed: int) -> Tensor:
    latents: Tensor = vae.encode(images).latents
    generator = torch.Generator().manual_seed(seed)
    noisy = latents + phase.latent_noise * torch.randn(latents.shape, generator=generator)
    decoded: Tensor = vae.decode(noisy).sample
    difference = decoded - images
    gradient = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    gradient = gradient + (difference[..., 1:] - difference[..., :-1]).abs().mean()
    weight = 1 + phase.edge_weight * _edges(images)
    return (weight * difference.abs()).mean() + 0.5 * gradient + 0.1 * _whiteness(latents)


def _edges(images: Tensor) -> Tensor:
    """Returns each pixel's distance from the mean of its neighbourhood: 0 on flat colour."""
    return (
        images - functional.avg_pool2d(images, 7, stride=1, padding=3, count_include_pad=False)
    ).abs()


def _whiteness(latents: Tensor) -> Tensor:
    """Returns the distance of the channels' moments from zero mean and identity covariance."""
    flat = latents.transpose(0, 1).flatten(1)
    mean = flat.mean(dim=1, keepdim=True)
    centred = flat - mean
    covariance = centred @ centred.T / flat.shape[1]
    return mean.square().mean() + functional.mse_loss(covariance, torch.eye(len(covariance)))


@torch.no_grad()
def _measure(vae: AutoencoderTiny, seed: int) -> tuple[float, float, list[float]]:
    """Returns the reconstruction's mean absolute error, the scaling factor, the channel means."""
    rng = random.Random(f"measure {seed}")
    images = torch.from_numpy(
        np.stack([as_array(render(random_scene(rng), width=256, height=256)) for _ in range(24)])
    )
    latents = vae.encode(images).latents
    error = (vae.decode(latents).sample.clamp(-1, 1) - images).abs().mean().item()
    means = [round(value, 3) for value in latents.mean(dim=(0, 2, 3)).tolist()]
    return error, 1 / latents.std().item(), means
