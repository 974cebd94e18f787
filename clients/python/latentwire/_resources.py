"""Models, generations and the server. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerInfo:
    """A sampler of a model."""

    id: str
    """Such as ``"euler"``."""
    sigmas: tuple[str, ...]
    """The spacings of noise levels that it supports."""
    evaluations_per_step: int
    """Denoiser evaluations per step: 1, or 2 for second-order samplers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """The limits of requests to a model. Sides in pixels, bounds inclusive."""

    min_side: int
    max_side: int
    side_multiple: int
    """Width and height must be multiples of this."""
    max_pixels: int
    max_inference_steps: int
    max_images: int
    max_prompt_bytes: int
    """Applies to the prompt and the negative prompt separately, in UTF-8."""
    max_guidance_scale: float
    max_clip_skip: int
    min_drawn_pixels: int
    """Images with fewer pixels are generated larger and scaled down; 0: none are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefaults:
    """The values that a model uses for fields that a request does not set."""

    width: int
    """In pixels."""
    height: int
    """In pixels."""
    num_inference_steps: int
    guidance_scale: float
    scheduler: tuple[str, str]
    """Scheduler id, and spacing of noise levels."""
    high_noise_frac: float | None = None
    """Where the refiner takes over, 0 to 1; None if the model has no refiner."""
    high_resolution_fix: float | None = None
    """Strength of the second pass for images above 1.5 times the model's native area; 0: no second
    pass, None: not supported by the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model, with enough data to build a form and to validate a request before sending it."""

    name: str
    """``models/{id}``."""
    display_name: str
    aliases: tuple[str, ...]
    """Further ids of the model."""
    is_default: bool
    state: str
    """``"ready"``, ``"loading"``, ``"unloaded"`` or ``"failed"``."""
    failure_message: str
    """Why the model failed to load; empty unless ``state`` is ``"failed"``."""
    family: str
    """Such as ``"stable-diffusion"``."""
    revision: str
    """A commit on the hub, or ``sha256:`` and a digest of the weights."""
    capabilities: tuple[str, ...]
    """Besides text-to-image, such as ``"inpainting"``."""
    schedulers: tuple[SchedulerInfo, ...]
    limits: ModelLimits
    defaults: ModelDefaults
    loras: tuple[str, ...]
    """Ids of the LoRAs that fit the model."""
    memory_bytes: int
    """Its share of the server's memory budget; 0 while the model is not loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A generation, as of the server's response."""

    name: str
    """``generations/{id}``."""
    state: str
    """``"queued"``, ``"running"``, ``"succeeded"``, ``"failed"`` or ``"cancelled"``."""
    model: str
    """``models/{id}``."""
    create_time: datetime
    end_time: datetime | None
    """None until the generation has ended."""
    ahead_count: int
    """Number of waiting generations that are served first."""
    step: int
    """Denoising steps completed."""
    step_count: int
    fraction: float
    """Share of the work completed, 0 to 1."""
    priority: int
    user: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """The server's version, device, limits and load."""

    version: str
    device: str
    """Such as ``"cpu"`` or ``"cuda:0"``."""
    dtype: str
    """Such as ``"float32"`` or ``"bfloat16"``."""
    batching: str
    """``"dynamic"`` or ``"reproducible"``."""
    max_rows: int
    """Most rows in one denoiser call, at the default model's native size."""
    max_request_bytes: int
    max_queued: int
    queued_count: int
    """Waiting generations of all callers."""
    running_count: int
    """Running generations of all callers."""
    draining: bool
    """Whether the server is shutting down and refuses new generations."""
    start_time: datetime
    library_versions: Mapping[str, str]
    denoiser_call_count: int
    """Denoiser calls since the server started."""
    denoiser_row_count: int
    """Rows in those calls, not counting padding."""
    denoiser_place_count: int
    """Rows that those calls had room for."""
    denoiser_backend: str
    """How the denoiser runs, such as ``"eager"``; empty for servers without this field."""
    compiled_shapes: tuple[str, ...]
    """Input shapes that the denoiser is compiled for, such as ``"8x4x64x64"``."""
    estimated_wait_s: float | None
    """Seconds until a new generation would begin; None until the server has measured its speed."""
