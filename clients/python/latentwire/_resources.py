"""Models, generations and the server as callers see them. Frozen values."""

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
    sigmas: tuple[str, ...]
    """The spacings of noise levels that it takes."""
    evaluations_per_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What a request to a model may ask for. Sides in pixels, bounds inclusive."""

    min_side: int
    max_side: int
    side_multiple: int
    max_pixels: int
    max_inference_steps: int
    max_images: int
    max_prompt_bytes: int
    max_guidance_scale: float
    max_clip_skip: int
    min_drawn_pixels: int
    """Images of fewer pixels are drawn larger and made smaller; 0: none are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefaults:
    """What a request to a model gets when it does not say."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: tuple[str, str]
    """Scheduler id and spacing of noise levels."""
    high_noise_frac: float | None = None
    """Where the refiner takes over; None without one."""
    high_resolution_fix: float | None = None
    """How much a second pass draws over images above 1.5 times the model's own area; 0: there is
    none, None: the model cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model: enough to build a form and to check a request before it is sent."""

    name: str
    """``models/{id}``."""
    display_name: str
    aliases: tuple[str, ...]
    is_default: bool
    state: str
    """``"ready"``, ``"loading"``, ``"unloaded"`` or ``"failed"``."""
    failure_message: str
    """Why it failed to load; mostly empty."""
    family: str
    revision: str
    capabilities: tuple[str, ...]
    schedulers: tuple[SchedulerInfo, ...]
    limits: ModelLimits
    defaults: ModelDefaults
    loras: tuple[str, ...]
    """Ids of the adapters that fit it."""
    memory_bytes: int
    """What it takes of the server's memory budget; 0 while it is not loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A generation as it was when the server answered."""

    name: str
    """``generations/{id}``."""
    state: str
    """``"queued"``, ``"running"``, ``"succeeded"``, ``"failed"`` or ``"cancelled"``."""
    model: str
    create_time: datetime
    end_time: datetime | None
    """None while it has not ended."""
    ahead_count: int
    step: int
    step_count: int
    fraction: float
    priority: int
    user: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """The server's version, device, limits and load."""

    version: str
    device: str
    dtype: str
    batching: str
    max_rows: int
    max_request_bytes: int
    max_queued: int
    queued_count: int
    running_count: int
    draining: bool
    start_time: datetime
    library_versions: Mapping[str, str]
    denoiser_call_count: int
    denoiser_row_count: int
    """Rows of those calls, padding not counted."""
    denoiser_place_count: int
    """Rows that those calls could have had."""
    denoiser_backend: str
    """How the denoiser is run, such as ``"eager"``; empty with servers older than this."""
    compiled_shapes: tuple[str, ...]
    """Shapes of latents that it is compiled for, such as ``"8x4x64x64"``."""
    estimated_wait_s: float | None
    """Until a generation that came now would begin; None until a speed is measured."""
