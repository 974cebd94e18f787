"""Settings that replace a model's own: its display name, its defaults, its limits.

They stand in its folder's ``latentwire.json`` or in the operator's configuration. All of them are
optional, and all of them are checked. Knows no torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from latentwire_server.models.errors import LoadError
from latentwire_server.models.info import ModelInfo, ModelLimits, SchedulerChoice

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Scheduler(_Part):
    id: str
    sigmas: str = "default"

    def __repr__(self) -> str:
        return f"{self.id} {self.sigmas}"


class ModelDefaultsGiven(_Part):
    """Replacements of a model's own defaults."""

    width: PositiveInt | None = None
    height: PositiveInt | None = None
    num_inference_steps: PositiveInt | None = None
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    scheduler: _Scheduler | None = None
    high_resolution_fix: Annotated[float, Field(ge=0, le=1)] | None = None
    """Strength of the second pass of images much larger than these; 0: there is no such pass."""


class ModelLimitsGiven(_Part):
    """Replacements of a model's own limits."""

    min_side: PositiveInt | None = None
    max_side: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    max_inference_steps: PositiveInt | None = None
    max_images: PositiveInt | None = None
    max_prompt_bytes: PositiveInt | None = None
    min_drawn_pixels: NonNegativeInt | None = None


class ModelSettings(_Part):
    """The settings of one place."""

    display_name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    defaults: ModelDefaultsGiven = ModelDefaultsGiven()
    limits: ModelLimitsGiven = ModelLimitsGiven()

    @classmethod
    def fields_at(cls, place: tuple[int | str, ...]) -> tuple[str, ...]:
        """Returns the fields of a part, such as those at ``("defaults", "scheduler")``."""
        return tuple(_PARTS[place].model_fields)

    def apply_to(self, info: ModelInfo, *, source: str, place: str) -> ModelInfo:
        """Returns a model's description with these settings in place of its own.

        Args:
            info: the description.
            source: where the model comes from.
            place: where the settings stand, for errors.

        Raises:
            LoadError: defaults lie outside of what the model or its limits allow; all are named.
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
        problems = [
            f"defaults.{name}={getattr(self.defaults, name)!r}: needed: {allowed[name][1]}"
            for name in given
            if not allowed[name][0]
        ]
        least = changed.limits.min_drawn_pixels
        most = changed.defaults.width * changed.defaults.height
        if least > most:
            problems.append(
                f"limits.min_drawn_pixels={least}: needed: up to {most}, the default size"
            )
        if problems:
            raise LoadError(source, f"{place}: {'; '.join(problems)}")
        return changed


_PARTS: Final[Mapping[tuple[int | str, ...], type[_Part]]] = {
    (): ModelSettings,
    ("defaults",): ModelDefaultsGiven,
    ("defaults", "scheduler"): _Scheduler,
    ("limits",): ModelLimitsGiven,
}


def _allowed(info: ModelInfo) -> dict[str, tuple[bool, str]]:
    """Returns whether each default is allowed, with what is allowed."""
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
        "high_resolution_fix": (True, "0 to 1"),
        "scheduler": (
            defaults.scheduler.sigmas in spacings.get(defaults.scheduler.id, ()),
            "a scheduler that is served, with a spacing of its own",
        ),
    }


def _is_side(side: int, limits: ModelLimits) -> bool:
    return limits.min_side <= side <= limits.max_side and side % limits.side_multiple == 0
