"""An autoencoder: images to latents, latents to images, or to previews without it.

Latents are scaled for the denoiser. Device thread only.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput

from latentwire_server.models.precision import to_device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from diffusers import AutoencoderKL, AutoencoderTiny
    from diffusers.models.modeling_outputs import AutoencoderKLOutput

TILED_ABOVE: Final = 1024
"""Images with a longer side are decoded in tiles, as by the pipeline's ``enable_vae_tiling``: the
decoder's memory grows with the area, and exceeds the denoiser's from here on."""


class Autoencoder:
    """Encodes and decodes one image at a time."""

    def __init__(
        self, vae: AutoencoderKL | AutoencoderTiny, *, may_encode_in_float32: bool = False
    ) -> None:
        """Wraps diffusers' autoencoder, which is on its device already.

        With ``may_encode_in_float32`` it encodes in float32 if its configuration asks for that.
        """
        self._vae = vae
        self._encodes_in_float32 = may_encode_in_float32 and bool(vae.config.force_upcast)
        self._scale = LatentScale(vae)
        self.scale_factor = vae_scale_factor(vae)
        """Pixels per latent, in either direction."""

    def encode(self, image: torch.Tensor) -> VaePosterior:
        """Encodes one image, (1, 3, height, width) float32 in [-1, 1]."""
        vae = self._vae
        vae.use_tiling = max(image.shape[-2:]) > TILED_ABOVE
        # Rounded before the upcast, as in the pipelines.
        dtype = vae.dtype
        rounded = to_device(image, vae.device).to(dtype)
        if not self._encodes_in_float32:
            return VaePosterior(vae.encode(rounded), scale=self._scale, dtype=dtype)
        with _in_float32(vae):
            return VaePosterior(vae.encode(rounded.float()), scale=self._scale, dtype=dtype)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes one image, (3, height, width) float32, from 0 for black to 1; not clamped."""
        vae = self._vae
        vae.use_tiling = max(latents.shape[-2:]) * self.scale_factor > TILED_ABOVE
        unscaled = self._scale.undone(latents.to(vae.device, vae.dtype))
        image: torch.Tensor = vae.decode(unscaled, return_dict=False)[0][0].float()
        return image / 2 + 0.5


@contextmanager
def _in_float32(vae: AutoencoderKL | AutoencoderTiny) -> Iterator[None]:
    """Encodes in float32 within the block. Upcasting and back changes no weight."""
    parts = [vae.encoder, getattr(vae, "quant_conv", None)]
    dtype = vae.dtype
    for part in parts:
        if part is not None:
            part.to(torch.float32)
    try:
        yield
    finally:
        for part in parts:
            if part is not None:
                part.to(dtype)


class LatentScale:
    """The linear map between the autoencoder's latents and the denoiser's."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny) -> None:
        config = vae.config
        self._factor: float = config.scaling_factor
        mean, std = config.get("latents_mean"), config.get("latents_std")
        self._moments: tuple[torch.Tensor, torch.Tensor] | None = None
        if mean is not None and std is not None:
            like = {"device": vae.device, "dtype": vae.dtype}
            self._moments = (
                torch.tensor(mean, **like).view(1, -1, 1, 1),
                torch.tensor(std, **like).view(1, -1, 1, 1),
            )

    def applied(self, latents: torch.Tensor) -> torch.Tensor:
        """Maps the autoencoder's latents to the denoiser's."""
        if self._moments is None:
            return latents * self._factor
        mean, std = self._moments
        return (latents - mean) * self._factor / std

    def undone(self, latents: torch.Tensor) -> torch.Tensor:
        """Maps the denoiser's latents to the autoencoder's."""
        if self._moments is None:
            return latents / self._factor
        mean, std = self._moments
        return latents * std / self._factor + mean


class VaePosterior:
    """An encoded image: a distribution of latents or, with a tiny autoencoder, just latents."""

    def __init__(
        self,
        encoded: AutoencoderKLOutput | AutoencoderTinyOutput,
        *,
        scale: LatentScale,
        dtype: torch.dtype,
    ) -> None:
        """Wraps the result of the autoencoder's ``encode``; ``dtype`` is the one to scale it in."""
        self._encoded = encoded
        self._scale = scale
        self._dtype = dtype

    @torch.inference_mode()
    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Returns latents, (1, channels, height, width) float32."""
        if isinstance(self._encoded, AutoencoderTinyOutput):
            latents = self._encoded.latents
        else:
            latents = self._encoded.latent_dist.sample(generator)
        return self._scale.applied(latents.to(self._dtype)).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentProjection:
    """A linear map from latents to RGB in [-1, 1]: previews at almost no cost."""

    factors: Sequence[Sequence[float]]
    """One (red, green, blue) per latent channel."""
    bias: Sequence[float] = (0.0, 0.0, 0.0)

    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns the latents of one image as (3, height, width) float32 in [0, 1]."""
        factors = torch.tensor(self.factors, device=latents.device)
        bias = torch.tensor(self.bias, device=latents.device).view(3, 1, 1)
        rgb = torch.einsum("chw,cr->rhw", latents[0].float(), factors) + bias
        return (rgb / 2 + 0.5).clamp(0, 1)


def vae_scale_factor(vae: AutoencoderKL | AutoencoderTiny) -> int:
    """Returns the number of pixels per latent, in either direction."""
    num_halvings = len(vae.config.block_out_channels) - 1
    return 1 << num_halvings
