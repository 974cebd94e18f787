"""A request as the caller sent it. Data only; any thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire_server.engine.request import ImageFormat, PreviewMethod
    from latentwire_server.models.info import LoraChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDraft:
    """The image to start from."""

    kind: str
    """The contract's field: ``"image_to_image"`` or ``"inpainting"``."""
    image: bytes
    """The caller's file."""
    mask: bytes = b""
    mask_inverted: bool = False
    strength: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HighResolutionFixDraft:
    """The caller's options for the second pass."""

    is_disabled: bool = False
    strength: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDraft:
    """A request before its defaults are filled in. None: not given.

    Strengths and other shares are as the caller wrote them: 0.7, not float32's 0.69999999.
    """

    model: str = ""
    prompt: str = ""
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    num_images: int | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler_id: str | None = None
    sigmas: str | None = None
    clip_skip: int | None = None
    high_noise_frac: float | None = None
    high_resolution_fix: HighResolutionFixDraft | None = None
    loras: tuple[LoraChoice, ...] = ()
    source: SourceDraft | None = None
    format: ImageFormat | None = None
    quality: int | None = None
    metadata_omitted: bool = False
    max_data_bytes: int | None = None
    progress_interval_steps: int | None = None
    preview_interval_steps: int | None = None
    preview_method: PreviewMethod | None = None
    preview_max_side: int | None = None
    priority: int = 0
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    goes_on_alone: bool = False
    """Whether the generation continues when its caller has disconnected."""
    resume_after_sequence: int = 0
    unsupported_fields: tuple[str, ...] = ()
    """Fields of the contract that are set and that this server does not support."""
    unknown_enums: tuple[tuple[str, int], ...] = ()
    """Fields with the number of an enum value that this server does not know."""
