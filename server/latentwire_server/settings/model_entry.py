"""One entry of ``[[models]]`` in ``latentwire.toml``: what the operator says about a model.

Plain values, checked when the settings are read. Knows nothing of how a model is loaded.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from latentwire_server.models.overrides import ModelDefaultsGiven, ModelLimitsGiven
from latentwire_server.models.source import EMBEDDED_ID, MAX_PROMPT_CHUNKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ID_PATTERN: Final = r"^[A-Za-z0-9._-]{1,64}$"
HubLora = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+\.safetensors)?$")
]
"""``owner/repository``, or with a file's name."""
_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9._-]+")
_ALIAS_PATTERN: Final = r"^[A-Za-z0-9._/:-]{1,128}$"
_OF_OTHERS: Final = ("revision", "variant", "single_file_config", "refiner", "vae")

Names = Annotated[
    tuple[Annotated[str, Field(pattern=_ALIAS_PATTERN)], ...],
    # TOML and JSON have lists alone.
    Field(strict=False),
]


class ListedModel(BaseModel):
    """A model that the server offers."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    source: Annotated[str, Field(min_length=1)]
    """``"embedded"``, a hub id, a diffusers folder or a ``.safetensors`` checkpoint."""
    id: Annotated[str, Field(pattern=ID_PATTERN)] | None = None
    """None: the last part of ``source``."""
    display_name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    aliases: Names = ()
    revision: str | None = None
    variant: str | None = None
    single_file_config: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """None: the server's, as is what follows."""
    denoiser_backend: Literal["auto", "eager", "inductor", "openvino"] | None = None
    safety_checker: bool | None = None
    unchecked_previews: bool | None = None
    watermark: bool | None = None
    embeddings_folder: Annotated[Path, Field(strict=False)] | None = None
    prompt_weighting: bool | None = None
    max_prompt_chunks: Annotated[int, Field(ge=1, le=MAX_PROMPT_CHUNKS)] | None = None
    defaults: ModelDefaultsGiven = ModelDefaultsGiven()
    limits: ModelLimitsGiven = ModelLimitsGiven()
    preload: bool | None = None
    """Whether it is loaded before the server is ready. None: the first model alone."""
    refiner: Annotated[str, Field(min_length=1)] | None = None
    """A diffusers folder, hub id or checkpoint, which takes the low noise levels."""
    refiner_single_file_config: str | None = None
    high_noise_frac: Annotated[float, Field(gt=0, le=1)] | None = None
    vae: Annotated[str, Field(min_length=1)] | None = None
    """A folder or hub id of an autoencoder in place of the model's own."""
    loras: Annotated[tuple[HubLora, ...], Field(strict=False)] = ()
    """Adapters from the hub, besides the server's."""

    @model_validator(mode="after")
    def _check_embedded(self) -> Self:
        given = [name for name in _OF_OTHERS if getattr(self, name) is not None]
        if self.source == EMBEDDED_ID and given:
            message = f"{', '.join(given)}: the embedded model has none; leave it out"
            raise ValueError(message)
        if self.high_noise_frac is not None and self.refiner is None:
            message = "high_noise_frac: says where the refiner takes over; there is none"
            raise ValueError(message)
        if self.refiner_single_file_config is not None and self.refiner is None:
            message = "refiner_single_file_config: is for a refiner's checkpoint; there is none"
            raise ValueError(message)
        return self

    @property
    def served_id(self) -> str:
        """The id under which it is served."""
        return self.id or id_of_source(self.source)


def id_of_source(source: str) -> str:
    """Returns the id of a model that is given none."""
    if source == EMBEDDED_ID:
        return EMBEDDED_ID
    name = PurePath(source).name.removesuffix(".safetensors")
    return _NOT_IN_IDS.sub("-", name).strip("-") or "model"


def name_conflicts(models: Sequence[ListedModel]) -> Iterator[str]:
    """Yields what is wrong with the names: each may mean one model only."""
    taken: dict[str, str] = {}
    for index, model in enumerate(models):
        names = {"id": (model.served_id,), "aliases": model.aliases}
        for field, values in names.items():
            place = f"models[{index}].{field}"
            for value in values:
                if value in taken:
                    yield f"{place}={value!r}: already means a model ({taken[value]})"
                taken.setdefault(value, place)
