"""What is said about a model beside its weights: its name, its defaults, its limits.

By its folder's ``latentwire.json`` or by the operator; all of it is optional, and all of it is
checked. Knows no torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from latentwire_server.models.errors import LoadError
from latentwire_server.models.info import ModelInfo, ModelLimits, SchedulerChoice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Scheduler(_Part):
    id: str
    sigmas: str = "default"

    def __repr__(self) -> str:
        return f"{self.id} {self.sigmas}"


class ModelDefaultsGiven(_Part):
    """What replaces a model's own defaults."""

    width: PositiveInt | None = None
    height: PositiveInt | None = None
    num_inference_steps: PositiveInt | None = None
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    scheduler: _Scheduler | None = None
    high_resolution_fix: Annotated[float, Field(ge=0, le=1)] | None = None
    """How much the second pass of pictures much larger than these draws over; 0: there is none."""


class ModelLimitsGiven(_Part):
    """What replaces a model's own limits."""

    min_side: PositiveInt | None = None
    max_side: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    max_inference_steps: PositiveInt | None = None
    max_images: PositiveInt | None = None
    max_prompt_bytes: PositiveInt | None = None
    min_drawn_pixels: NonNegativeInt | None = None


class ModelSettings(_Part):
    """All that is said in one place."""

    display_name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    defaults: ModelDefaultsGiven = ModelDefaultsGiven()
    limits: ModelLimitsGiven = ModelLimitsGiven()

    @classmethod
    def fields_at(cls, place: tuple[int | str, ...]) -> tuple[str, ...]:
        """Returns the fields of a part, such as those at ``("defaults", "scheduler")``."""
        return tuple(_PARTS[place].model_fields)

    def apply_to(self, info: ModelInfo, *, source: str, place: str) -> ModelInfo:
        """Returns the description with what is said here put in.

        Args:
            info: what was known before.
            source: where the model comes from.
            place: where it is said, for errors.

        Raises:
            LoadError: a default lies outside what the model can do or its limits allow; all that
                do are named.
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
        problems = [*self._wrong_defaults(changed, given), *_too_many_drawn_pixels(changed)]
        if problems:
            raise LoadError(source, f"{place}: {'; '.join(problems)}")
        return changed

    def _wrong_defaults(self, info: ModelInfo, given: Iterable[str]) -> Iterator[str]:
        allowed = _allowed(info)
        for name in given:
            is_right, needed = allowed[name]
            if not is_right:
                yield f"defaults.{name}={getattr(self.defaults, name)!r}: needed: {needed}"


_PARTS: Final[Mapping[tuple[int | str, ...], type[_Part]]] = {
    (): ModelSettings,
    ("defaults",): ModelDefaultsGiven,
    ("defaults", "scheduler"): _Scheduler,
    ("limits",): ModelLimitsGiven,
}


def _too_many_drawn_pixels(info: ModelInfo) -> Iterator[str]:
    least, most = info.limits.min_drawn_pixels, info.defaults.width * info.defaults.height
    if least > most:
        yield f"limits.min_drawn_pixels={least}: needed: up to {most}, the default size"


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
        "high_resolution_fix": (True, "0 to 1"),
        "scheduler": (
            defaults.scheduler.sigmas in spacings.get(defaults.scheduler.id, ()),
            "a scheduler that is served, with a spacing of its own",
        ),
    }


def _is_side(side: int, limits: ModelLimits) -> bool:
    return limits.min_side <= side <= limits.max_side and side % limits.side_multiple == 0
