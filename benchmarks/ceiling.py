"""What the device can do at all: its rates of matrix products and convolutions, measured.

The shapes are those of Stable Diffusion 1.5's UNet, where most of its time goes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS: Final = 1.0
_TOKENS, _WIDTH = 4096, 1280
_CHANNELS, _SIDE = 320, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """Floating-point operations per second."""

    matmul_flops: float
    convolution_flops: float


@torch.inference_mode()
def measure_ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """Returns the best rates of about a second each."""
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


def _best_s(work: Callable[[], object], device: torch.device) -> float:
    best_s, give_up_at = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < give_up_at:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - started)
    return best_s
