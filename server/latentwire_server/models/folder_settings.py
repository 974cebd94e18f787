"""``latentwire.json`` in a model folder: what diffusers has no place for.

The file is the model's own word about itself: its display name, what a request gets that does not
say, and how far a request may go. All of it is optional, and all of it is checked while loading.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from latentwire_server.models.info import ModelDefaults, ModelInfo, ModelLimits, SchedulerChoice
from latentwire_server.models.inspection import read_json
from latentwire_server.models.source import LoadError

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS_FILE: Final = "latentwire.json"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Scheduler(_Part):
    id: str
    sigmas: str = "default"


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
        defaults = replace(info.defaults, **given)
        for name in given:
            _check(name, defaults, limits, info, source=source)
        return replace(
            info,
            display_name=self.display_name or info.display_name,
            limits=limits,
            defaults=defaults,
        )


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


def _check(
    name: str, defaults: ModelDefaults, limits: ModelLimits, info: ModelInfo, *, source: str
) -> None:
    value = getattr(defaults, name)
    match name:
        case "width" | "height":
            low, high, multiple = limits.min_side, limits.max_side, limits.side_multiple
            is_right = low <= value <= high and value % multiple == 0
            allowed = f"{low} to {high} in multiples of {multiple}"
        case "num_inference_steps":
            is_right = value <= limits.max_inference_steps
            allowed = f"up to {limits.max_inference_steps}"
        case "guidance_scale":
            is_right = value <= limits.max_guidance_scale
            allowed = f"up to {limits.max_guidance_scale:g}"
        case "scheduler":
            spacings = {one.id: one.sigmas for one in info.schedulers}
            is_right = value.sigmas in spacings.get(value.id, ())
            allowed = "a scheduler of the list, with a spacing of its own"
            value = f"{value.id} {value.sigmas}"
        case _:
            raise AssertionError(name)
    if not is_right:
        reason = f"{SETTINGS_FILE}: defaults.{name}={value!r}: needed: {allowed}"
        raise LoadError(source, reason)
