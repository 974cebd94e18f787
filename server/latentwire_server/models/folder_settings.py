"""``latentwire.json`` in a model folder: what diffusers has no place for.

The file is the model's own word about itself: its display name, what a request gets that does not
say, and how far a request may go. All of it is optional, and all of it is checked while loading.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from latentwire_server.models.info import ModelInfo, ModelLimits, SchedulerChoice
from latentwire_server.models.inspection import SETTINGS_FILE, read_json
from latentwire_server.models.source import LoadError

if TYPE_CHECKING:
    from pathlib import Path


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Scheduler(_Part):
    id: str
    sigmas: str = "default"

    def __repr__(self) -> str:
        return f"{self.id} {self.sigmas}"


class _Defaults(_Part):
    width: PositiveInt | None = None
    height: PositiveInt | None = None
    num_inference_steps: PositiveInt | None = None
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    scheduler: _Scheduler | None = None


class _Limits(_Part):
    min_side: PositiveInt | None = None
    max_side: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    max_inference_steps: PositiveInt | None = None
    max_images: PositiveInt | None = None
    max_prompt_bytes: PositiveInt | None = None


class FolderSettings(_Part):
    """The content of a ``latentwire.json``."""

    display_name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    defaults: _Defaults = _Defaults()
    limits: _Limits = _Limits()

    def apply_to(self, info: ModelInfo, *, source: str) -> ModelInfo:
        """Returns the description with what the folder says put in.

        Raises:
            LoadError: a default lies outside what the model can do or its limits allow.
        """
        limits = replace(info.limits, **self.limits.model_dump(exclude_none=True))
        given = self.defaults.model_dump(exclude_none=True)
        if self.defaults.scheduler is not None:
            given["scheduler"] = SchedulerChoice(**self.defaults.scheduler.model_dump())
        changed = replace(
            info,
            display_name=self.display_name or info.display_name,
            limits=limits,
            defaults=replace(info.defaults, **given),
        )
        allowed = _allowed(changed)
        for name in given:
            is_right, needed = allowed[name]
            if not is_right:
                value = getattr(self.defaults, name)
                reason = f"{SETTINGS_FILE}: defaults.{name}={value!r}: needed: {needed}"
                raise LoadError(source, reason)
        return changed


def read_folder_settings(folder: Path) -> FolderSettings:
    """Returns what a folder's ``latentwire.json`` says; nothing if it has none.

    Raises:
        LoadError: it is not understood; the first setting that is wrong is named.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return FolderSettings()
    try:
        return FolderSettings.model_validate(read_json(path, source=str(folder)))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        reason = f"{SETTINGS_FILE}: {place}={problem['input']!r}: {problem['msg']}"
        raise LoadError(str(folder), reason) from None


def _allowed(info: ModelInfo) -> dict[str, tuple[bool, str]]:
    """Returns for each default whether it may be, and what may be."""
    limits, defaults = info.limits, info.defaults
    sides = f"{limits.min_side} to {limits.max_side} in multiples of {limits.side_multiple}"
    spacings = {one.id: one.sigmas for one in info.schedulers}
    return {
        "width": (_is_side(defaults.width, limits), sides),
        "height": (_is_side(defaults.height, limits), sides),
        "num_inference_steps": (
            defaults.num_inference_steps <= limits.max_inference_steps,
            f"up to {limits.max_inference_steps}",
        ),
        "guidance_scale": (
            defaults.guidance_scale <= limits.max_guidance_scale,
            f"up to {limits.max_guidance_scale:g}",
        ),
        "scheduler": (
            defaults.scheduler.sigmas in spacings.get(defaults.scheduler.id, ()),
            "a scheduler that is served, with a spacing of its own",
        ),
    }


def _is_side(side: int, limits: ModelLimits) -> bool:
    return limits.min_side <= side <= limits.max_side and side % limits.side_multiple == 0
