"""An autoencoder at the service of a family: pictures to latents, latents to pictures.

Latents are scaled as the denoiser's are. Device thread only.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput

from latentwire_server.models.precision import to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import AutoencoderKL, AutoencoderTiny
    from diffusers.models.modeling_outputs import AutoencoderKLOutput

TILED_ABOVE: Final = 1024
"""Pictures with a longer side are decoded in tiles, as the pipeline's ``enable_vae_tiling`` does:
the decoder's memory grows with the area, and takes more than the denoiser's from here on."""


class Autoencoder:
    """Encodes and decodes one picture at a time."""

    def __init__(
        self, vae: AutoencoderKL | AutoencoderTiny, *, may_encode_in_float32: bool = False
    ) -> None:
        """Takes diffusers' autoencoder, on its device.

        ``may_encode_in_float32``: it does where its configuration asks for that.
        """
        self._vae = vae
        self._encodes_in_float32 = may_encode_in_float32 and bool(vae.config.force_upcast)
        self._scale = LatentScale(vae)
        self.scale_factor = vae_scale_factor(vae)
        """How many pixels one latent is wide."""

    def encode(self, image: torch.Tensor) -> VaePosterior:
        """Encodes one picture, (1, 3, height, width) float32 in [-1, 1]."""
        vae = self._vae
        vae.use_tiling = max(image.shape[-2:]) > TILED_ABOVE
        # Rounded first and upcast then, as in the pipelines.
        dtype = vae.dtype
        rounded = to_device(image, vae.device).to(dtype)
        if not self._encodes_in_float32:
            return VaePosterior(vae.encode(rounded), scale=self._scale, dtype=dtype)
        with _in_float32(vae):
            return VaePosterior(vae.encode(rounded.float()), scale=self._scale, dtype=dtype)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes one image, (3, height, width) float32, from 0 for black to 1, and not clamped."""
        vae = self._vae
        vae.use_tiling = max(latents.shape[-2:]) * self.scale_factor > TILED_ABOVE
        unscaled = self._scale.undone(latents.to(vae.device, vae.dtype))
        image: torch.Tensor = vae.decode(unscaled, return_dict=False)[0][0].float()
        return image / 2 + 0.5


@contextmanager
def _in_float32(vae: AutoencoderKL | AutoencoderTiny) -> Iterator[None]:
    """Lets what encodes compute in float32 within the block; there and back no weight changes."""
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
    """How the denoiser's latents differ from the autoencoder's."""

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
        """Returns the denoiser's latents for the autoencoder's."""
        if self._moments is None:
            return latents * self._factor
        mean, std = self._moments
        return (latents - mean) * self._factor / std

    def undone(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns the autoencoder's latents for the denoiser's."""
        if self._moments is None:
            return latents / self._factor
        mean, std = self._moments
        return latents * std / self._factor + mean


class VaePosterior:
    """What an autoencoder makes of a picture: a distribution, or with a tiny one just latents."""

    def __init__(
        self,
        encoded: AutoencoderKLOutput | AutoencoderTinyOutput,
        *,
        scale: LatentScale,
        dtype: torch.dtype,
    ) -> None:
        """Takes what the autoencoder's ``encode`` returned, and the dtype to scale it in."""
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


def vae_scale_factor(vae: AutoencoderKL | AutoencoderTiny) -> int:
    """Returns how many pixels one latent is wide."""
    num_halvings = len(vae.config.block_out_channels) - 1
    return 1 << num_halvings
