"""Trains the UNet, and the text encoder along with it, on cached latents."""

import copy
import logging
import math
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel, CLIPTokenizer

from tools.embedded_model.scenes.prompts import random_prompt
from tools.embedded_model.scenes.scene import Scene
from tools.embedded_model.scenes.vocabulary import PAIR_RADII
from tools.embedded_model.training import checkpoint
from tools.embedded_model.training.denoiser import Denoiser, build, build_scheduler, load_trained
from tools.embedded_model.training.latents import (
    CHUNK,
    NATIVE,
    SMALL,
    SMALL_CHUNK,
    LatentPool,
    Size,
)
from tools.embedded_model.training.text_encoder import tokenize

logger = logging.getLogger(__name__)

NUM_STEPS = 10000
LEARNING_RATE = 1e-3
# text_training has trained the text encoder already; here it only adapts.
_TEXT_SHARE = 0.1
_WARMUP_STEPS = 150
_DECAY_FROM = 0.7
_EMA_DECAY = 0.997
_MAX_WEIGHT = 5.0
_TIMESTEP_POWER = 0.7
_OBJECT_WEIGHT = 12.0
_OBJECT_WEIGHT_UNTIL = 0.94
_TYPICAL_RADIUS = PAIR_RADII["medium"]
_FIRST_CHUNKS = 4
_STEPS_PER_CHUNK = 400
# Words are learned first, on small images: a row of 128x128 costs a quarter of one at 256x256. Then
# comes the native size, then other sizes. Both are shares of all steps.
_SMALL_UNTIL = 0.32
_NATIVE_ONLY_UNTIL = 0.8
_SAVE_EVERY = 200
_LOG_EVERY = 100
_SMALL_ROWS = 48
# (share of steps, size, rows): larger images cost the same with fewer rows.
_BATCHES: tuple[tuple[float, Size, int], ...] = (
    (0.3, NATIVE, 16),
    (0.6, (512, 512), 4),
    (0.05, (384, 256), 10),
    (0.05, (256, 384), 10),
)


class _Rows(NamedTuple):
    """Rows of a training batch, all tensors of one length."""

    noisy: Tensor
    timesteps: Tensor
    token_ids: Tensor
    target: Tensor
    weight: Tensor


class _Twins:
    """Two denoisers that share weights, each with half of the rows on a thread of its own.

    The halves synchronise once per step. Two threads inside every operation would synchronise a
    thousand times, and wait for the slower one each time that other programs use the cores.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self._twins = (denoiser, copy.deepcopy(denoiser))
        for mine, other in self._parameters():
            other.data = mine.data
        self._threads = ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,))

    def backward(self, rows: _Rows, *, trains_text: bool) -> float:
        """Computes the gradient of the mean loss on the first twin; returns the loss."""
        for twin in self._twins:
            twin.text_encoder.requires_grad_(trains_text)
        halves = [_Rows(*half) for half in zip(*(part.chunk(2) for part in rows), strict=True)]
        losses = list(self._threads.map(self._backward_half, self._twins, halves))
        with torch.no_grad():
            for mine, other in self._parameters():
                if mine.grad is not None and other.grad is not None:
                    mine.grad.add_(other.grad)
        return sum(losses)

    @staticmethod
    def _backward_half(denoiser: Denoiser, rows: _Rows) -> float:
        denoiser.zero_grad(set_to_none=True)
        prediction: Tensor = denoiser(rows.noisy, rows.timesteps, rows.token_ids)
        loss = (rows.weight * (prediction - rows.target).square()).mean() / 2
        torch.autograd.backward(loss)
        return float(loss.item())

    def _parameters(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        mine, other = self._twins
        return zip(mine.parameters(), other.parameters(), strict=True)


def learning_rate(step: int, num_steps: int) -> float:
    """Warm-up, plateau, cosine to almost 0; depends only on the step, so that a run can resume."""
    if step < _WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / _WARMUP_STEPS
    decay = max(0.0, (step / num_steps - _DECAY_FROM) / (1 - _DECAY_FROM))
    return LEARNING_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(decay, 1))))


def train(
    path: Path,
    *,
    vae: AutoencoderTiny,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
) -> Denoiser:
    """Trains up to `num_steps`, from a checkpoint at `path` if there is one.

    Returns:
        The average of the weights.
    """
    torch.manual_seed(seed)
    denoiser = build(text_encoder)
    ema = get_ema_multi_avg_fn(_EMA_DECAY)  # type: ignore[no-untyped-call]  # torch's own gap
    average = AveragedModel(denoiser, multi_avg_fn=ema)
    optimizer = torch.optim.AdamW(
        [
            {"params": denoiser.text_encoder.parameters(), "share": _TEXT_SHARE},
            {"params": denoiser.unet.parameters(), "share": 1.0},
        ],
        lr=LEARNING_RATE,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        fused=True,
    )
    step = 0
    state = checkpoint.load(path)
    if state is not None:
        denoiser.load_state_dict(state["denoiser"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    twins = _Twins(denoiser)
    small = LatentPool(vae, path.parent / "small", chunk=SMALL_CHUNK, seed=seed)
    large = LatentPool(vae, path.parent / "latents", chunk=CHUNK, seed=seed)
    alphas_cumprod = build_scheduler().alphas_cumprod
    started, losses = time.monotonic(), []
    while step < num_steps:
        rng = random.Random(f"{seed} {step}")
        size, num_rows = _batch(step / num_steps, rng)
        pool = small if size == SMALL else large
        pool.grow_to(_FIRST_CHUNKS + step // _STEPS_PER_CHUNK)
        scenes, latents = pool.rows(size, num_rows, rng)
        token_ids = tokenize(tokenizer, [random_prompt(scene, rng) for scene in scenes])
        rows = _rows(
            latents,
            token_ids,
            alphas_cumprod,
            scenes,
            # Equal weights at the end: a weighted mean leans towards objects that may not exist.
            object_weight=_OBJECT_WEIGHT if step < _OBJECT_WEIGHT_UNTIL * num_steps else 1.0,
            seed=rng.getrandbits(48),
        )
        # The text encoder is trained already; on small images the UNet only learns to use it.
        loss = twins.backward(rows, trains_text=size != SMALL)
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate(step, num_steps)
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step < 1000 and step % 100 == 0:
            # The average starts again from the current weights, without the poor early ones.
            average.module.load_state_dict(denoiser.state_dict())
        average.update_parameters(denoiser)
        losses.append(loss)
        if step % _LOG_EVERY == 0:
            mean_loss = sum(losses[-_LOG_EVERY:]) / len(losses[-_LOG_EVERY:])
            elapsed_s = time.monotonic() - started
            logger.info("denoiser step=%d loss=%.4f elapsed_s=%.0f", step, mean_loss, elapsed_s)
        if step % _SAVE_EVERY == 0 or step == num_steps:
            checkpoint.save(
                path,
                {
                    "denoiser": denoiser.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                },
            )
    return load_trained(path, tokenizer)


def _batch(progress: float, rng: random.Random) -> tuple[Size, int]:
    if progress < _SMALL_UNTIL:
        return SMALL, _SMALL_ROWS
    if progress < _NATIVE_ONLY_UNTIL:
        return _BATCHES[0][1:]
    return rng.choices(_BATCHES, weights=[share for share, _, _ in _BATCHES])[0][1:]


def _object_weights(scenes: list[Scene], cells: torch.Size, object_weight: float) -> Tensor:
    """Returns higher weights for the discs around objects than for the rest: (rows, 1, h, w).

    Discs, so that the cells around a star count as much as the star: with higher weights for the
    objects' own cells alone, the optimal mean leans outwards and corners come out round.
    """
    rows, columns = cells
    shorter = min(rows, columns)
    y = (torch.arange(rows).view(-1, 1) + 0.5) / shorter
    x = (torch.arange(columns) + 0.5) / shorter
    weights = torch.ones(len(scenes), 1, rows, columns)
    for row, scene in zip(weights, scenes, strict=True):
        for item in scene.objects:
            centre_y, centre_x = item.y * rows / shorter, item.x * columns / shorter
            distance = torch.hypot(y - centre_y, x - centre_x)
            # A small object has few cells, and would count too little by area.
            weight = 1 + (object_weight - 1) * (_TYPICAL_RADIUS / item.radius) ** 2
            row[:, distance < item.radius + 1 / shorter] = weight
    return weights


def _rows(
    latents: Tensor,
    token_ids: Tensor,
    alphas_cumprod: Tensor,
    scenes: list[Scene],
    *,
    object_weight: float,
    seed: int,
) -> _Rows:
    generator = torch.Generator().manual_seed(seed)
    num_rows = len(latents)
    noise = torch.randn(latents.shape, generator=generator)
    # One timestep from each of `num_rows` equal parts: less variance than independent samples.
    # The power leans towards noise, where the image's content is decided.
    offsets = torch.rand(num_rows, generator=generator)
    order = torch.randperm(num_rows, generator=generator)
    timesteps = ((order + offsets) / num_rows).pow(_TIMESTEP_POWER) * len(alphas_cumprod)
    timesteps = timesteps.long().clamp(max=len(alphas_cumprod) - 1)
    alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    return _Rows(
        noisy=noisy.contiguous(memory_format=torch.channels_last),
        timesteps=timesteps,
        token_ids=token_ids,
        target=alpha.sqrt() * noise - (1 - alpha).sqrt() * latents,
        # The v loss is (snr + 1) times the loss on the clean latents; capped as in Min-SNR
        # (arXiv:2303.09556), so that nearly clean rows, which are easy, don't prevail.
        weight=(_MAX_WEIGHT * (1 - alpha)).clamp(max=1)
        * _object_weights(scenes, latents.shape[2:], object_weight),
    )
