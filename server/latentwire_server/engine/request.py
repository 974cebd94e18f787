"""A complete generation request. Frozen values without torch; any thread."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from latentwire_server.models.info import LoraChoice, SchedulerChoice


Adapters = tuple[tuple[str, float], ...]
"""Ids of LoRA adapters with their scales, sorted."""


class ImageFormat(StrEnum):
    """The file formats of images."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


class PreviewMethod(StrEnum):
    """The ways to turn predicted latents into a preview."""

    LINEAR = "linear"
    FULL_VAE = "full-vae"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """The options of the image files."""

    format: ImageFormat = ImageFormat.PNG
    quality: int = 90
    metadata_omitted: bool = False
    max_data_bytes: int = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EventOptions:
    """The options of progress and preview events."""

    progress_interval_steps: int = 1
    preview_interval_steps: int = 0
    preview_method: PreviewMethod = PreviewMethod.LINEAR
    preview_max_side: int = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """An image that the generation starts from, at the size of the generated images."""

    pixels: NDArray[np.uint8]
    """(height, width, 3), RGB."""
    mask: NDArray[np.uint8] | None
    """(height, width), 255 where the image is regenerated and 0 elsewhere; None: 255 everywhere."""
    strength: float
    """How much of the image is changed, above 0 to 1: the share of the steps that are taken."""
    image_sha256: bytes
    """Digest of the caller's file."""
    mask_sha256: bytes = b""
    mask_inverted: bool = False
    delivered: Source | None = None
    """The same at the size of the files, where that differs from the generated size."""

    def without_pixels(self) -> Source:
        """Returns the source without its pixels, to be remembered once the generation has ended."""
        mask = None if self.mask is None else self.mask[:0].copy()
        return replace(self, pixels=self.pixels[:0].copy(), mask=mask, delivered=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class HighResolutionFix:
    """A first pass at the model's native size, whose latents are enlarged for a second pass."""

    width: int
    """Of the first pass in pixels, as is the height."""
    height: int
    strength: float
    """How much the second pass changes, above 0 to 1: the share of the steps that it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A valid request with every default filled in, ready for the engine."""

    generation_id: str
    owner: str
    """The principal that sent it and alone may see it. Empty when authentication is off."""
    model: str
    """The model's id, resolved."""
    prompt: str
    negative_prompt: str = ""
    width: int
    """Of the generated image in pixels, as is the height."""
    height: int
    delivered_size: tuple[int, int] | None = None
    """(width, height) of the files, where they are smaller; None: the generated size."""
    num_images: int = 1
    seed: int
    """Seed of the first image; image i uses ``seed + i`` (modulo 2**63)."""
    num_inference_steps: int
    guidance_scale: float
    scheduler: SchedulerChoice
    clip_skip: int = 0
    loras: tuple[LoraChoice, ...] = ()
    source: Source | None = None
    """The image that the generation starts from; None: noise."""
    guidance_is_embedded: bool = False
    """Whether the guidance scale is an input of the denoiser, which needs no unconditional rows."""
    high_noise_frac: float | None = None
    """The share of the noise levels after which the refiner takes over; None: no refiner."""
    high_resolution_fix: HighResolutionFix | None = None
    """For images much larger than the model's native size; None: one pass at the full size."""
    high_resolution_fix_disabled: bool = False
    """Whether the caller has switched it off."""
    output: OutputOptions = OutputOptions()
    events: EventOptions = EventOptions()
    priority: int = 0
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    deadline: float | None = None
    """On the clock of ``time.monotonic()``; None: no deadline."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        return tuple((self.seed + index) % 2**63 for index in range(self.num_images))

    @property
    def file_size(self) -> tuple[int, int]:
        """(width, height) of the files."""
        return self.delivered_size or (self.width, self.height)

    @property
    def adapters(self) -> Adapters:
        """The LoRA adapters with a scale other than 0, in an order that all requests share."""
        return tuple(sorted((lora.id, lora.scale) for lora in self.loras if lora.scale != 0))

    @property
    def num_steps(self) -> int:
        """The number of steps in all passes."""
        fix = self.high_resolution_fix
        second_pass = 0 if fix is None else self.steps_of(fix.strength)
        return self.steps_of(1.0 if self.source is None else self.source.strength) + second_pass

    def steps_of(self, strength: float) -> int:
        """Returns how many of the last ``num_inference_steps`` a strength takes.

        As ``StableDiffusionImg2ImgPipeline.get_timesteps`` counts them.
        """
        return min(int(self.num_inference_steps * strength), self.num_inference_steps)

    @property
    def uses_guidance(self) -> bool:
        """Whether each image takes two denoiser rows, one of them unconditional."""
        return self.guidance_scale > 1.0 and not self.guidance_is_embedded

    @property
    def num_rows(self) -> int:
        """The number of denoiser rows of one evaluation."""
        return self.num_images * (2 if self.uses_guidance else 1)


Describe: TypeAlias = "Callable[[GenerationRequest, int, str], str | None]"
"""Returns the text for an image's file, given the image's index and the model's revision."""
