"""``latentwire.json`` and ``preview.json`` in a model folder: what diffusers has no place for.

The first is what a model says about itself: its display name, what a request gets that leaves
something out, and how far a request may go. The second is the linear projection of its latents to
RGB, for previews.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ValidationError

from latentwire_server.models.components.autoencoder import LatentProjection
from latentwire_server.models.errors import LoadError
from latentwire_server.models.overrides import ModelSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

SETTINGS_FILE: Final = "latentwire.json"
PREVIEW_FILE: Final = "preview.json"


def folder_settings(content: Mapping[str, object], *, source: str) -> ModelSettings:
    """Returns the settings in the content of a ``latentwire.json``.

    Raises:
        LoadError: it is not understood; every setting that is wrong is named.
    """
    try:
        return ModelSettings.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        reason = f"{SETTINGS_FILE}: {'; '.join(map(_described, problems))}"
        raise LoadError(source, reason) from None


def latent_projection(content: Mapping[str, object], *, source: str) -> LatentProjection:
    """Returns the projection in the content of a ``preview.json``.

    Raises:
        LoadError: it is none.
    """
    try:
        preview = _Preview.model_validate(content)
        return LatentProjection(factors=preview.latent_rgb_factors, bias=preview.latent_rgb_bias)
    except ValueError:
        raise LoadError(source, f"{PREVIEW_FILE} is not a projection to RGB") from None


class _Preview(BaseModel):
    latent_rgb_factors: list[list[float]]
    latent_rgb_bias: list[float]


def _described(problem: ErrorDetails) -> str:
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(ModelSettings.fields_at(problem["loc"][:-1]))
        message = f"there is no such field, only: {allowed}"
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}={problem['input']!r}: {message}"
