"""A request as the caller gave it. Data only; any thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latentwire_server.models.info import SchedulerChoice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire_server.engine.request import ImageFormat, PreviewMethod
    from latentwire_server.models.info import ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDraft:
    """What a caller wants to start from, as it came."""

    kind: str
    """The contract's field: ``"image_to_image"`` or ``"inpainting"``."""
    image: bytes
    mask: bytes = b""
    mask_inverted: bool = False
    strength: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HighResolutionFixDraft:
    """What a caller wants of it, as it came."""

    is_disabled: bool = False
    strength: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraDraft:
    """An adapter that a caller wants, as it came."""

    id: str
    scale: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDraft:
    """What a caller asked for, as it came. None: not given."""

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
    loras: tuple[LoraDraft, ...] = ()
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
    """Whether it is drawn to its end when its caller is gone."""
    resume_after_sequence: int = 0
    unsupported_fields: tuple[str, ...] = ()
    """Fields of the contract that are set and that this server does not serve."""
    unknown_enums: tuple[tuple[str, int], ...] = ()
    """Fields with the number of an enum value that this server does not know."""

    def scheduler_choice(self, info: ModelInfo) -> SchedulerChoice:
        """Returns the sampler that is meant: given in full, in part, or the model's."""
        if self.scheduler_id is None and self.sigmas is None:
            return info.defaults.scheduler
        return SchedulerChoice(
            id=self.scheduler_id or info.defaults.scheduler.id, sigmas=self.sigmas or "default"
        )
