"""Every option of a model, once: where it comes from, how it is loaded, how it is served.

The server's settings inherit ``ModelOptions``, and an entry of ``[[models]]`` adds to them what
tells one model from another. So an option that is declared here is a flag, an environment variable,
a key of ``[server]`` and a key of ``[[models]]``. Knows no torch.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from latentwire_server.models.overrides import ModelSettings

EMBEDDED_ID: Final = "embedded"
EMBEDDED_FOLDER: Final = Path(__file__).parents[1] / "embedded" / "model"
ID_PATTERN: Final = r"^[A-Za-z0-9._-]{1,64}$"
_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9._-]+")
_ALIAS_PATTERN: Final = r"^[A-Za-z0-9._/:-]{1,128}$"

HubLora = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+\.safetensors)?$")
]
"""``owner/repository`` or ``owner/repository/file.safetensors``."""

OF_ONE_SOURCE: Final = ("revision", "variant", "single_file_config", "refiner", "vae")
"""Options that belong to one source: no default for several models, nor for the embedded one."""

# TOML and JSON have strings and lists where Python has paths and tuples.
_Path = Annotated[Path, Field(strict=False)]
_Aliases = Annotated[tuple[Annotated[str, Field(pattern=_ALIAS_PATTERN)], ...], Field(strict=False)]


class ModelOptions(BaseModel):
    """The options of a model, with the server's own defaults."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    revision: str | None = Field(
        None, description="Revision of a hub model: branch, tag or commit."
    )
    variant: str | None = Field(None, description="Variant of the weights, such as 'fp16'.")
    single_file_config: str | None = Field(
        None, description="Diffusers folder or hub id with the configuration of a checkpoint."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of the denoiser; 'auto' takes the device's fastest exact one.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.",
    )
    denoiser_backend: Literal["auto", "eager", "inductor", "openvino"] = Field(
        "auto",
        description="How the denoiser runs: 'inductor' and 'openvino' compile it before the server"
        " is ready, 'eager' does not; 'auto' is 'openvino' on a CPU where it is installed and"
        " faster, unless the batching is reproducible.",
    )
    refiner: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Model that takes over at low noise: a diffusers folder, hub id or checkpoint"
        " of the same variant.",
    )
    refiner_single_file_config: str | None = Field(
        None,
        description="Diffusers folder or hub id with the configuration of a refiner's checkpoint.",
    )
    high_noise_frac: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Share of the way from noise to image after which the refiner takes over,"
        " unless the request says otherwise.",
    )
    vae: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Folder or hub id of an autoencoder that replaces the model's own."
    )
    embeddings_folder: _Path | None = Field(
        None,
        description="Folder of textual inversion embeddings (.safetensors), one for each word.",
    )
    prompt_weighting: bool = Field(
        default=False,
        description="Read brackets in prompts as weights: (word:1.3), (word), [word].",
    )
    max_prompt_chunks: int = Field(
        1,
        ge=1,
        le=8,
        description="Most chunks of a prompt that the text encoder reads; 3 are up to 225 tokens.",
    )
    lora_folder: _Path | None = Field(
        None, description="Folder of LoRA files (.safetensors) that requests may ask for by name."
    )
    loras: Annotated[tuple[HubLora, ...], Field(strict=False)] = Field(
        (),
        description="LoRA files from the hub, separated by commas: 'owner/repository', or"
        " 'owner/repository/file.safetensors' where there are several.",
    )
    safety_checker: bool = Field(
        default=True,
        description="Withhold images that the model's own safety checker flags, if it has one.",
    )
    unchecked_previews: bool = Field(
        default=False,
        description="Also send previews of models with a safety checker, which does not see them.",
    )
    watermark: bool = Field(
        default=False,
        description="Write diffusers' invisible watermark into images; needs"
        " `latentwire[watermark]`.",
    )

    @model_validator(mode="after")
    def _check_refiner(self) -> Self:
        for name, is_about in (
            ("high_noise_frac", "says where the refiner takes over"),
            ("refiner_single_file_config", "is for a refiner's checkpoint"),
        ):
            if name in self.model_fields_set and self.refiner is None:
                message = f"{name}: {is_about}; there is none"
                raise ValueError(message)
        return self


class ModelEntry(ModelOptions, ModelSettings):
    """A model to serve: an entry of ``[[models]]``, or the one model of ``--model``."""

    source: Annotated[str, Field(min_length=1)]
    """``"embedded"``, a hub id, a diffusers folder or a ``.safetensors`` checkpoint."""
    id: Annotated[str, Field(pattern=ID_PATTERN)] = ""
    """By default the last part of ``source``."""
    aliases: _Aliases = ()
    preload: bool | None = None
    """Whether it is loaded before the server is ready. None: only if it is the first model."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        # JSON's null is no value, as if the key were left out.
        entry = {name: value for name, value in given.items() if value is not None}
        source = entry.get("source")
        return {"id": id_of_source(source), **entry} if isinstance(source, str) else entry

    @property
    def is_local(self) -> bool:
        """Whether all of its folders are on this machine; a checkpoint may need the hub."""
        sources = (self.source, self.refiner, self.vae)
        paths = [local_path(one) for one in sources if one is not None]
        return not self.loras and all(path is not None and path.is_dir() for path in paths)

    def with_defaults(self, server: ModelOptions) -> Self:
        """Returns the entry with the server's options where it has none; LoRAs add up."""
        unset = ModelOptions.model_fields.keys() - self.model_fields_set
        loras = tuple(dict.fromkeys((*server.loras, *self.loras)))
        return self.model_copy(
            update={name: getattr(server, name) for name in unset} | {"loras": loras}
        )


def local_path(source: str) -> Path | None:
    """Returns where a source would be on this machine; None: it is a hub id.

    ``owner/repository`` is a hub id unless there is such a folder or file.
    """
    path = EMBEDDED_FOLDER if source == EMBEDDED_ID else Path(source).expanduser()
    is_path = path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1
    return path if is_path or path.exists() else None


def id_of_source(source: str) -> str:
    """Returns the id of a model whose entry names none."""
    if source == EMBEDDED_ID:
        return EMBEDDED_ID
    name = PurePath(source).name.removesuffix(".safetensors")
    return _NOT_IN_IDS.sub("-", name).strip("-") or "model"
