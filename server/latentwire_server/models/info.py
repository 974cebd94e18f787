"""What a model is and can do, as plain values.

Read from every thread. Knows no torch: validation and the RPC layer describe and check requests
with these types alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

HIGH_RESOLUTION_STRENGTH: Final = 0.6
"""Less leaves the blur of the enlarged latents, more draws other things than the first pass did."""
DEFAULT_LORA_BYTES: Final = 2**30
PROMPT_WEIGHTING: Final = "prompt-weighting"
"""The capability of a model that takes brackets in prompts for weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerChoice:
    """A sampler as a request names it."""

    id: str
    """Kebab-case id, such as ``"dpmpp-2m"``."""
    sigmas: str = "default"
    """Spacing of the noise levels: ``"default"``, ``"karras"``, ``"exponential"`` or ``"beta"``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraChoice:
    """An adapter as a request names it."""

    id: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraInfo:
    """An adapter as a model lists it."""

    id: str
    num_bytes: int
    """What it takes on the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseRange:
    """A part of the way from noise to picture, as shares of the noise levels' timesteps."""

    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What a model takes in memory, as far as that is known before it is loaded."""

    weights_bytes: int
    programs_bytes: int = 0
    """What its denoisers are compiled into, as many programs as are to be expected."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.programs_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerInfo:
    """A sampler as a model lists it."""

    id: str
    sigmas: tuple[str, ...] = ("default",)
    evaluations_per_step: int = 1
    max_inference_steps: int | None = None
    """Most steps that it can take; ``None``: as many as the model's limits allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What a request to a model may ask for. Sides in pixels, bounds inclusive."""

    min_side: int = 64
    max_side: int = 2048
    side_multiple: int = 8
    max_pixels: int = 4_194_304
    max_inference_steps: int = 150
    max_images: int = 10
    max_prompt_bytes: int = 32_000
    max_guidance_scale: float = 50.0
    max_clip_skip: int = 0
    min_drawn_pixels: int = 0
    """Pictures of fewer pixels are drawn larger and made smaller; 0: as they are asked for."""
    max_lora_bytes: int = DEFAULT_LORA_BYTES
    """Most that the adapters of a request may take together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefaults:
    """What a request to a model gets when it does not say."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: SchedulerChoice
    high_noise_frac: float | None = None
    """Where the refiner takes over; ``None``: there is none."""
    high_resolution_fix: float | None = None
    """How much the second pass of much larger pictures draws over; 0: they are drawn at once;
    ``None``: it cannot be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """One model, as clients see it."""

    id: str
    display_name: str
    family: str
    """Kind of architecture, such as ``"stable-diffusion"``."""
    revision: str
    """A hub commit, or ``sha256:`` and a digest of the weights."""
    schedulers: tuple[SchedulerInfo, ...]
    limits: ModelLimits
    defaults: ModelDefaults
    aliases: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    guidance_is_embedded: bool = False
    """Whether the denoiser is told the guidance scale, instead of being asked with and without."""
    loras: tuple[LoraInfo, ...] = ()
    """The adapters that fit it."""
    unfit_loras: Mapping[str, str] = field(default_factory=dict)
    """Why others that were given do not, by id."""
