"""How a trajectory begins: from noise, from a picture, or with a part of a picture kept.

Device thread only. The images' generators are drawn from in the order of diffusers' pipelines, each
image from its own: text-to-image as in ``StableDiffusionPipeline``, from a picture as in
``StableDiffusionImg2ImgPipeline``, with a mask, or with a denoiser that is made for one, as in
``StableDiffusionInpaintPipeline``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from latentwire_server.engine.request import GenerationRequest, Source
    from latentwire_server.models.protocol import DiffusionModel, ImagePosterior, StepScheduler


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptPart:
    """What of a picture is not redrawn."""

    original: torch.Tensor
    """(images, channels, height, width) float32."""
    noise: torch.Tensor
    """What the latents started from, of the same shape."""
    mask: torch.Tensor
    """(1, 1, height, width): 1 where it is redrawn."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InitialLatents:
    """What a trajectory begins with."""

    latents: torch.Tensor
    """(images, channels, height, width) float32."""
    kept: KeptPart | None = None
    """What is put back after each step, where the denoiser does not see it."""
    mask_latents: torch.Tensor | None = None
    """What a denoiser that is made for inpainting sees beside the latents, one for each image."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Beginner:
    """Makes the latents that a phase of one trajectory begins with."""

    request: GenerationRequest
    width: int
    """Of the phase's pictures, as is the height."""
    height: int
    model: DiffusionModel
    scheduler: StepScheduler
    generators: Sequence[torch.Generator]

    def begin(self) -> InitialLatents:
        """Returns what the trajectory begins with; draws from the generators."""
        source = self.request.source
        if self.model.sees_masks:
            return self._with_mask_seen(source)
        if source is None:
            return InitialLatents(latents=self._noise() * self.scheduler.init_noise_sigma)
        return self._from_picture(source)

    def enlarged(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns finished latents of a smaller picture at this size, as noisy as is wanted.

        From there on they are what ``StableDiffusionImg2ImgPipeline`` makes of latents.
        """
        larger = torch.nn.functional.interpolate(latents, size=self._shape[1:], mode="bicubic")
        return self.scheduler.add_noise(larger, self._noise(), 0)

    def _from_picture(self, source: Source) -> InitialLatents:
        posterior = self.model.encode_image(_picture_of(source))
        original, noise = self._sampled(posterior), self._noise()
        latents = self.scheduler.add_noise(original, noise, 0)
        if source.mask is None:
            return InitialLatents(latents=latents)
        # For the masked picture, which only denoisers that are made for inpainting see.
        self._sampled(posterior)
        if source.strength == 1.0:
            latents = noise * self.scheduler.init_noise_sigma
        mask = self._on_latents(_is_redrawn(source.mask))
        return InitialLatents(
            latents=latents, kept=KeptPart(original=original, noise=noise, mask=mask)
        )

    def _with_mask_seen(self, source: Source | None) -> InitialLatents:
        """Without a mask, all is redrawn; without a picture, there was none to see."""
        picture = torch.zeros((1, 3, self.height, self.width))
        redrawn = torch.ones_like(picture[:, :1])
        if source is not None:
            picture = _picture_of(source)
            redrawn = redrawn if source.mask is None else _is_redrawn(source.mask)
        if source is None or source.strength == 1.0:
            latents = self._noise() * self.scheduler.init_noise_sigma
        else:
            original = self._sampled(self.model.encode_image(picture))
            latents = self.scheduler.add_noise(original, self._noise(), 0)
        # Zero is grey, which stands for what is not to be seen.
        seen = self._sampled(self.model.encode_image(picture * (1 - redrawn)))
        mask = self._on_latents(redrawn).expand(len(seen), -1, -1, -1)
        return InitialLatents(latents=latents, mask_latents=torch.cat([mask, seen], dim=1))

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.model.latent_shape(width=self.width, height=self.height)

    def _noise(self) -> torch.Tensor:
        noise = [
            torch.randn((1, *self._shape), generator=generator, dtype=torch.float32)
            for generator in self.generators
        ]
        return torch.cat(noise).to(self.model.device_name)

    def _sampled(self, posterior: ImagePosterior) -> torch.Tensor:
        return torch.cat([posterior.sample(generator) for generator in self.generators])

    def _on_latents(self, mask: torch.Tensor) -> torch.Tensor:
        scaled = torch.nn.functional.interpolate(mask, size=self._shape[1:])
        return scaled.to(self.model.device_name)


def _picture_of(source: Source) -> torch.Tensor:
    """Returns (1, 3, height, width) float32 in [-1, 1]."""
    pixels = torch.tensor(source.pixels).permute(2, 0, 1)[None]
    return 2 * (pixels.float() / 255) - 1


def _is_redrawn(mask: NDArray[np.uint8]) -> torch.Tensor:
    """Returns (1, 1, height, width) float32: 1 where the picture is redrawn."""
    return torch.tensor(mask)[None, None].float() / 255
