"""What a loaded model can do, read off its parts and its folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latentwire_server.models.components.latent_projection import LatentProjection
from latentwire_server.models.errors import LoadError
from latentwire_server.models.files.checked_files import read_json
from latentwire_server.models.loading.inspection import PREVIEW_FILE, SETTINGS_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.models.components.component_set import Components
    from latentwire_server.models.families.family import Family
    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.overrides import ModelSettings
    from latentwire_server.models.source import ModelSource

CONFIGURATION: Final = "[[models]]"
"""Where the operator says what replaces a model's own settings."""


def describe(
    source: ModelSource,
    family: Family,
    parts: Components,
    *,
    revision: str,
    settings: ModelSettings,
) -> ModelInfo:
    """Returns what clients see of a model.

    Args:
        source: where it came from.
        family: what kind of model it is.
        parts: what it is made of.
        revision: a hub commit or a digest.
        settings: what its folder says about it.

    Raises:
        LoadError: it is of a kind that is not served, or its settings are wrong.
    """
    refusal = family.refusal(parts)
    if refusal is not None:
        raise LoadError(source.source, refusal)
    info = family.describe(parts, id_=source.id)
    info = replace(info, revision=revision, aliases=source.aliases)
    info = settings.apply_to(info, source=source.source, place=SETTINGS_FILE)
    if source.overrides is not None:
        info = source.overrides.apply_to(info, source=source.source, place=CONFIGURATION)
    return replace(info, display_name=source.display_name or info.display_name)


def with_refiner(info: ModelInfo, *, high_noise_frac: float) -> ModelInfo:
    """Returns the description of a model whose low noise levels a refiner takes."""
    return replace(
        info,
        capabilities=(*info.capabilities, "refiner"),
        defaults=replace(info.defaults, high_noise_frac=high_noise_frac),
    )


def latent_projection(folder: Path) -> LatentProjection | None:
    """Returns a folder's own projection of latents to RGB, if it has one."""
    path = folder / PREVIEW_FILE
    if not path.exists():
        return None
    content = read_json(path, source=str(folder))
    try:
        return LatentProjection(
            factors=[_numbers(row) for row in _list(content["latent_rgb_factors"])],
            bias=_numbers(content["latent_rgb_bias"]),
        )
    except (KeyError, TypeError, ValueError):
        raise LoadError(str(folder), f"{PREVIEW_FILE} is not a projection to RGB") from None


def _numbers(value: object) -> list[float]:
    return [_number(one) for one in _list(value)]


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError
    return value
