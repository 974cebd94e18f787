"""Trains the UNet, and the text encoder along with it, on cached latents.

v-prediction, on a schedule whose last timestep is nearly pure noise. With epsilon and Stable
Diffusion's own schedule the last timestep still contains the image's mean colour in training;
sampling starts without it, and flat colours come out wrong.
"""

import copy
import logging
import math
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel, CLIPTokenizer

from tools.embedded_model import checkpoint
from tools.embedded_model.latents import CHUNK, NATIVE, SMALL, SMALL_CHUNK, LatentPool, Size
from tools.embedded_model.prompts import random_prompt
from tools.embedded_model.scene import Scene
from tools.embedded_model.text import WIDTH as TEXT_WIDTH
from tools.embedded_model.text import build_text_encoder, tokenize
from tools.embedded_model.vocabulary import PAIR_RADII

logger = logging.getLogger(__name__)

NUM_STEPS = 10000
LEARNING_RATE = 1e-3
# The text encoder is trained already and only adapts; see text_training.
_TEXT_SHARE = 0.1
_FIRST_TEXT_SCALE = 0.2
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
# Words come first, on small images: a row of 128x128 costs a quarter of one at 256x256. Then their
# meaning at the native size, then other sizes. Shares of all steps.
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


class Denoiser(nn.Module):
    """The text encoder and the UNet as one module, with one optimizer and one EMA for both."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
        """Returns the predicted v, shaped as `noisy`."""
        prompt_embeds = self.text_encoder(token_ids).last_hidden_state
        prediction: Tensor = self.unet(noisy, timesteps, prompt_embeds).sample
        return prediction


class _Rows(NamedTuple):
    """Rows of a training batch, all tensors of one length."""

    noisy: Tensor
    timesteps: Tensor
    token_ids: Tensor
    target: Tensor
    weight: Tensor


class _Twins:
    """Two denoisers on one set of weights, each with half the rows on a thread of its own.

    The halves synchronise once a step; two threads inside every operation do so a thousand times,
    each time waiting for the slower one if other programs use the cores too.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedDenoiser:
    """The result of training: the averaged weights."""

    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    num_steps: int


def build_scheduler() -> DDIMScheduler:
    """Builds the model's own scheduler; its noise schedule is the one trained on."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        # Unused with trailing spacing, but diffusers warns about any other value.
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def build(text_encoder: CLIPTextModel) -> Denoiser:
    """Puts an untrained UNet behind the text encoder."""
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        # Attention at the two lower levels: with the lowest alone, places and colours followed the
        # prompt, but every shape was a disc.
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # the number of heads, in spite of its name
        use_linear_projection=True,
        # The tokens' mean is also added to the time embedding and so reaches every block. At
        # timestep 999, the loss with the right prompt against a wrong one was 0.97 : 1.08 after
        # 1000 steps of cross-attention alone, and 0.59 : 1.80 after 200 more with this.
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        # Few groups: one channel a group would erase flat colour.
        norm_num_groups=8,
    )
    with torch.no_grad():
        unet.add_embedding.norm2.weight.mul_(_FIRST_TEXT_SCALE)
    return Denoiser(text_encoder, unet.to(memory_format=torch.channels_last))


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
) -> TrainedDenoiser:
    """Trains to `num_steps`, from the checkpoint at `path` if there is one; returns the average."""
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
            # Equal weights at the end: a weighted mean leans towards objects that may not be there.
            object_weight=_OBJECT_WEIGHT if step < _OBJECT_WEIGHT_UNTIL * num_steps else 1.0,
            seed=rng.getrandbits(48),
        )
        # The text encoder knows the scenes already; on small images the UNet learns to use it.
        loss = twins.backward(rows, trains_text=size != SMALL)
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate(step, num_steps)
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step < 1000 and step % 100 == 0:
            # Early weights are best forgotten: the average starts over from the current ones.
            _restart(average, denoiser)
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


def load_trained(path: Path, tokenizer: CLIPTokenizer) -> TrainedDenoiser:
    """Returns the averaged weights of the checkpoint, finished or not.

    Raises:
        FileNotFoundError: nothing was saved at `path` yet.
    """
    state = checkpoint.load(path)
    if state is None:
        raise FileNotFoundError(path)
    average = AveragedModel(build(build_text_encoder(tokenizer)))
    average.load_state_dict(state["average"])
    denoiser = average.module.eval().requires_grad_(requires_grad=False)
    return TrainedDenoiser(
        text_encoder=denoiser.text_encoder, unet=denoiser.unet, num_steps=state["step"]
    )


def _restart(average: AveragedModel, denoiser: Denoiser) -> None:
    average.module.load_state_dict(denoiser.state_dict())


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
    # One timestep from each of `num_rows` equal parts: less variance than independent draws.
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
