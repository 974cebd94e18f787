"""Prepares the latents that a phase starts from: noise, a noised source image, or a masked one.

Device thread only. Random numbers are taken in the order of diffusers' pipelines, each image's from
its own generator: text-to-image as in ``StableDiffusionPipeline``, image-to-image as in
``StableDiffusionImg2ImgPipeline``, with a mask, or with a denoiser made for inpainting, as in
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
class UnmaskedRegion:
    """The part of a source image that inpainting preserves."""

    original: torch.Tensor
    """(images, channels, height, width) float32: the latents of the whole source."""
    noise: torch.Tensor
    """The initial noise, of the same shape."""
    mask: torch.Tensor
    """(1, 1, height, width): 1 where the image is regenerated."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InitialLatents:
    """The latents that a trajectory starts from, and what its mask adds to them."""

    latents: torch.Tensor
    """(images, channels, height, width) float32."""
    unmasked: UnmaskedRegion | None = None
    """Restored after each step, where the denoiser does not see the mask."""
    mask_latents: torch.Tensor | None = None
    """(images, 1 + channels, height, width): the mask and the masked image, for a denoiser that is
    made for inpainting."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentPreparer:
    """Prepares the latents of one phase of a trajectory."""

    request: GenerationRequest
    width: int
    """Of the phase's images in pixels, as is the height."""
    height: int
    model: DiffusionModel
    scheduler: StepScheduler
    generators: Sequence[torch.Generator]

    def prepare(self) -> InitialLatents:
        """Returns the initial latents of a trajectory; advances the generators."""
        source = self.request.source
        if self.model.sees_masks:
            return self._with_mask_latents(source)
        if source is None:
            return InitialLatents(latents=self._noise() * self.scheduler.init_noise_sigma)
        return self._from_source(source)

    def enlarge(self, latents: torch.Tensor) -> torch.Tensor:
        """Returns the finished latents of a smaller image at this size, noised for the next phase.

        From there on they are treated as ``StableDiffusionImg2ImgPipeline`` treats latents.
        """
        larger = torch.nn.functional.interpolate(latents, size=self._shape[1:], mode="bicubic")
        return self.scheduler.add_noise(larger, self._noise(), 0)

    def _from_source(self, source: Source) -> InitialLatents:
        posterior = self.model.encode_image(_image_tensor(source))
        original, noise = self._sampled(posterior), self._noise()
        latents = self.scheduler.add_noise(original, noise, 0)
        if source.mask is None:
            return InitialLatents(latents=latents)
        # The pipeline samples the masked image too, which only inpainting denoisers use.
        self._sampled(posterior)
        if source.strength == 1.0:
            latents = noise * self.scheduler.init_noise_sigma
        mask = self._at_latent_size(_mask_tensor(source.mask))
        return InitialLatents(
            latents=latents, unmasked=UnmaskedRegion(original=original, noise=noise, mask=mask)
        )

    def _with_mask_latents(self, source: Source | None) -> InitialLatents:
        """Prepares inpainting; without a mask, or without a source, everything is regenerated."""
        image = torch.zeros((1, 3, self.height, self.width))
        mask = torch.ones_like(image[:, :1])
        if source is not None:
            image = _image_tensor(source)
            mask = mask if source.mask is None else _mask_tensor(source.mask)
        if source is None or source.strength == 1.0:
            latents = self._noise() * self.scheduler.init_noise_sigma
        else:
            original = self._sampled(self.model.encode_image(image))
            latents = self.scheduler.add_noise(original, self._noise(), 0)
        # Zero is grey: masked pixels are hidden from the denoiser.
        masked_image = self._sampled(self.model.encode_image(image * (1 - mask)))
        latent_mask = self._at_latent_size(mask).expand(len(masked_image), -1, -1, -1)
        return InitialLatents(
            latents=latents, mask_latents=torch.cat([latent_mask, masked_image], dim=1)
        )

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

    def _at_latent_size(self, mask: torch.Tensor) -> torch.Tensor:
        scaled = torch.nn.functional.interpolate(mask, size=self._shape[1:])
        return scaled.to(self.model.device_name)


def _image_tensor(source: Source) -> torch.Tensor:
    """Returns (1, 3, height, width) float32 in [-1, 1]."""
    pixels = torch.tensor(source.pixels).permute(2, 0, 1)[None]
    return 2 * (pixels.float() / 255) - 1


def _mask_tensor(mask: NDArray[np.uint8]) -> torch.Tensor:
    """Returns (1, 1, height, width) float32: 1 where the image is regenerated."""
    return torch.tensor(mask)[None, None].float() / 255
