"""The device's ceiling: its measured rates of matrix products and convolutions.

The shapes are those on which Stable Diffusion 1.5's UNet spends most of its time. An image takes at
least its operations divided by these rates.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.workload import Kind

_SECONDS: Final = 1.0
_TOKENS, _WIDTH = 4096, 1280
_CHANNELS, _SIDE = 320, 64
_TEXT_TOKENS: Final = 77


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """Floating-point operations per second."""

    matmul_flops: float
    convolution_flops: float

    def seconds_of(self, operations: Operations) -> float:
        """Returns the least time for these operations."""
        return (
            operations.matmul_flop / self.matmul_flops
            + operations.convolution_flop / self.convolution_flops
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Counts of floating-point operations; a multiply-add counts as two."""

    matmul_flop: int
    convolution_flop: int


@torch.inference_mode()
def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """Measures each rate for about a second; returns the best ones."""
    left = torch.randn(_TOKENS, _WIDTH, device=device, dtype=dtype)
    right = torch.randn(_WIDTH, _WIDTH, device=device, dtype=dtype)
    image = torch.randn(2, _CHANNELS, _SIDE, _SIDE, device=device, dtype=dtype)
    image = image.to(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, device=device, dtype=dtype)
    layer = layer.to(memory_format=torch.channels_last)
    return Ceiling(
        matmul_flops=2 * _TOKENS * _WIDTH * _WIDTH / _best_s(lambda: left @ right, device),
        convolution_flops=2 * image.numel() * _CHANNELS * 9 / _best_s(lambda: layer(image), device),
    )


def operations_of(folder: Path, kind: Kind) -> Operations:
    """Counts the operations of one image's denoiser calls, without text encoder and decoder.

    Args:
        folder: A diffusers folder; its weights are not read.
        kind: The request to count.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        vae_config = AutoencoderKL.load_config(folder / "vae")
        factor = 2 ** (len(vae_config["block_out_channels"]) - 1)
        num_rows = 2 if kind.guidance_scale > 1 else 1
        rows = torch.empty(
            num_rows, unet.config.in_channels, kind.height // factor, kind.width // factor
        )
        text = torch.empty(num_rows, _TEXT_TOKENS, unet.config.cross_attention_dim)
        with FlopCounterMode(display=False) as counter:
            unet(rows, torch.empty(num_rows), encoder_hidden_states=text)
    counts = counter.get_flop_counts()["Global"]
    convolution = sum(count for name, count in counts.items() if "convolution" in str(name))
    return Operations(
        matmul_flop=kind.num_inference_steps * (sum(counts.values()) - convolution),
        convolution_flop=kind.num_inference_steps * convolution,
    )


def _best_s(work: Callable[[], object], device: torch.device) -> float:
    best_s, ends_at = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < ends_at:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - started)
    return best_s
