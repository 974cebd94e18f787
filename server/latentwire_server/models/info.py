"""What a model is and can do, as plain values.

Read on every thread. Must not know torch: validation and the RPC layer describe models and check
requests with these types alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

HIGH_RESOLUTION_STRENGTH: Final = 0.6
"""A lower one keeps the blur of the enlarged latents, a higher one changes what the image shows."""
DEFAULT_LORA_BYTES: Final = 2**30
PROMPT_WEIGHTING: Final = "prompt-weighting"
"""The capability of a model that reads brackets in prompts as weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerChoice:
    """A scheduler as a request names it."""

    id: str
    """Kebab-case id, such as ``"dpmpp-2m"``."""
    sigmas: str = "default"
    """Spacing of the noise levels: ``"default"``, ``"karras"``, ``"exponential"`` or ``"beta"``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraChoice:
    """A LoRA as a request names it."""

    id: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraInfo:
    """A LoRA as a model lists it."""

    id: str
    num_bytes: int
    """Its size on the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseRange:
    """A part of the way from noise to image, in fractions of the noise levels' timesteps."""

    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """How much memory a model takes, as far as that is known before it is loaded."""

    weights_bytes: int
    programs_bytes: int = 0
    """The compiled programs of its denoisers, as many as are expected."""

    @property
    def total_bytes(self) -> int:
        """Weights and programs together."""
        return self.weights_bytes + self.programs_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerInfo:
    """A scheduler as a model lists it."""

    id: str
    sigmas: tuple[str, ...] = ("default",)
    evaluations_per_step: int = 1
    max_inference_steps: int | None = None
    """The most steps that it can take; ``None``: as many as the model's limits allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """The limits of a request to a model. Sides in pixels, bounds inclusive."""

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
    """Smaller images are generated larger and then scaled down; 0: none are."""
    max_lora_bytes: int = DEFAULT_LORA_BYTES
    """The most that the LoRAs of a request may take together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefaults:
    """The values of fields that a request leaves unset."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: SchedulerChoice
    high_noise_frac: float | None = None
    """Where the refiner takes over; ``None``: the model has no refiner."""
    high_resolution_fix: float | None = None
    """The strength of the second pass of much larger images; 0: they are generated in one pass;
    ``None``: the model has no second pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """One model, as clients see it."""

    id: str
    display_name: str
    family: str
    """The kind of architecture, such as ``"stable-diffusion"``."""
    revision: str
    """A hub commit, or ``sha256:`` and a digest of the weights."""
    schedulers: tuple[SchedulerInfo, ...]
    limits: ModelLimits
    defaults: ModelDefaults
    aliases: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    guidance_is_embedded: bool = False
    """Whether the denoiser takes the guidance scale as an input, instead of a second row."""
    loras: tuple[LoraInfo, ...] = ()
    """The LoRAs that fit the model."""
    unfit_loras: Mapping[str, str] = field(default_factory=dict)
    """Why the other configured LoRAs do not fit, by id."""
