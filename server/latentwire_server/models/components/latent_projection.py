"""A linear map from latents to RGB: previews at almost no cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentProjection:
    """A linear map from latents to RGB in [-1, 1], good enough for previews."""

    factors: Sequence[Sequence[float]]
    """One (red, green, blue) per latent channel."""
    bias: Sequence[float] = (0.0, 0.0, 0.0)

    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Projects the latents of one image, (1, channels, height, width), on their device.

        Returns:
            (3, height, width) float32 in [0, 1].
        """
        factors = torch.tensor(self.factors, device=latents.device)
        bias = torch.tensor(self.bias, device=latents.device).view(3, 1, 1)
        rgb = torch.einsum("chw,cr->rhw", latents[0].float(), factors) + bias
        return (rgb / 2 + 0.5).clamp(0, 1)
