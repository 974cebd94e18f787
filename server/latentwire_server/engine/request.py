"""The data that everything talks about: requests, events, snapshots. Frozen, torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from latentwire_server.models.info import LoraChoice, SchedulerChoice


Adapters = tuple[tuple[str, float], ...]
"""Ids of adapters, each with its scale, sorted."""


class ImageFormat(StrEnum):
    """File formats of the images."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


class PreviewMethod(StrEnum):
    """Ways to turn a predicted image into a preview."""

    LINEAR = "linear"
    FULL_VAE = "full-vae"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How the images are delivered."""

    format: ImageFormat = ImageFormat.PNG
    quality: int = 90
    metadata_omitted: bool = False
    max_data_bytes: int = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EventOptions:
    """Which progress events are sent. Intervals in steps."""

    progress_interval_steps: int = 1
    preview_interval_steps: int = 0
    preview_method: PreviewMethod = PreviewMethod.LINEAR
    preview_max_side: int = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """A picture that the drawing starts from, at the size of the images."""

    pixels: NDArray[np.uint8]
    """(height, width, 3), RGB."""
    mask: NDArray[np.uint8] | None
    """(height, width), 255 where it is redrawn and 0 where it is kept; None: all is redrawn."""
    strength: float
    """How much is redrawn, above 0 to 1: the share of the steps that are taken."""
    image_sha256: bytes
    """Of the caller's file."""
    mask_sha256: bytes = b""
    mask_inverted: bool = False
    delivered: Source | None = None
    """The same at the size of the files, where that is not the size that is drawn."""

    def without_pixels(self) -> Source:
        """Returns what is worth remembering once it is drawn: all but the pictures themselves."""
        mask = None if self.mask is None else self.mask[:0].copy()
        return replace(self, pixels=self.pixels[:0].copy(), mask=mask, delivered=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class HighResolutionFix:
    """A first pass at the model's own size, whose latents are enlarged and drawn over."""

    width: int
    """Of the first pass, as is the height."""
    height: int
    strength: float
    """How much is drawn over, above 0 to 1: the share of the steps that the second pass takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A valid request with every default filled in, ready for the engine."""

    generation_id: str
    owner: str
    """The principal that made it; nobody else may see it. Empty when authentication is off."""
    model: str
    """The model's id, resolved."""
    prompt: str
    negative_prompt: str = ""
    width: int
    """As it is drawn, and so is the height."""
    height: int
    delivered_size: tuple[int, int] | None = None
    """(width, height) of the files, where that is smaller; None: as it is drawn."""
    num_images: int = 1
    seed: int
    """Of the first image; image i uses ``seed + i`` (modulo 2**63)."""
    num_inference_steps: int
    guidance_scale: float
    scheduler: SchedulerChoice
    clip_skip: int = 0
    loras: tuple[LoraChoice, ...] = ()
    source: Source | None = None
    """What the drawing starts from; None: from noise."""
    guidance_is_embedded: bool = False
    """Whether the denoiser is told the guidance scale, and needs no unconditional rows for it."""
    high_noise_frac: float | None = None
    """Where the refiner takes over, a share of the way to the picture; None: there is none."""
    high_resolution_fix: HighResolutionFix | None = None
    """For a picture much larger than the model's own; None: drawn at once."""
    high_resolution_fix_disabled: bool = False
    """Whether the caller would have none."""
    output: OutputOptions = OutputOptions()
    events: EventOptions = EventOptions()
    priority: int = 0
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    deadline: float | None = None
    """On the clock of ``time.monotonic()``."""

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
        """What it is drawn with: its adapters that count, in an order of their own."""
        return tuple(sorted((lora.id, lora.scale) for lora in self.loras if lora.scale != 0))

    @property
    def num_steps(self) -> int:
        """How many steps are taken, in all passes."""
        fix = self.high_resolution_fix
        second_pass = 0 if fix is None else self.steps_of(fix.strength)
        return self.steps_of(1.0 if self.source is None else self.source.strength) + second_pass

    def steps_of(self, strength: float) -> int:
        """Returns how many of ``num_inference_steps``, the last, redraw so much.

        As ``StableDiffusionImg2ImgPipeline.get_timesteps`` counts them.
        """
        return min(int(self.num_inference_steps * strength), self.num_inference_steps)

    @property
    def uses_guidance(self) -> bool:
        """Whether each image takes two denoiser rows, one of them unconditional."""
        return self.guidance_scale > 1.0 and not self.guidance_is_embedded

    @property
    def num_rows(self) -> int:
        """How many denoiser rows one step takes."""
        return self.num_images * (2 if self.uses_guidance else 1)
