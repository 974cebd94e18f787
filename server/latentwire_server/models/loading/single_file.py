"""Loads the parts of a single-file checkpoint, as Stable Diffusion was first published.

The file holds weights alone. Its configuration and tokenizer come from a diffusers folder or hub
repository: one that the operator names, or the origin that diffusers finds out and fetches.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self, cast

import diffusers
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import safe_open

from latentwire_server.models.components.component_set import Components
from latentwire_server.models.errors import LoadError
from latentwire_server.models.families.known_families import FAMILIES
from latentwire_server.models.loading.inspection import allowed_classes
from latentwire_server.models.text.clip_encoder import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny
    from transformers import CLIPTextModel, CLIPTokenizer

    from latentwire_server.models.families.family import Family

SINGLE_FILE_UNET: Final = "model.diffusion_model."
"""How the names of a checkpoint's tensors begin that are its denoiser's."""
SINGLE_FILE_VAE: Final = "first_stage_model."
"""And its autoencoder's."""


def load_single_file(
    path: Path,
    *,
    config: str | None,
    dtype: torch.dtype,
    vae: AutoencoderKL | AutoencoderTiny | None = None,
) -> tuple[Family, Components]:
    """Loads a checkpoint that is known to be safetensors.

    Args:
        path: the checkpoint.
        config: a diffusers folder or hub id with its configuration and tokenizer.
        dtype: number format of the parts.
        vae: an autoencoder in place of the checkpoint's, which is then not read.

    Raises:
        LoadError: it is no such checkpoint, or its configuration cannot be had.
    """
    family = _family(path)
    options: dict[str, object] = {"torch_dtype": dtype}
    if vae is not None:
        options["vae"] = vae
    if config is not None:
        options["config"] = config
        options["local_files_only"] = Path(config).is_dir()
    failures = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)
    kind = cast("type[_Pipeline]", getattr(diffusers, family.single_file_pipeline))
    try:
        pipeline = kind.from_single_file(str(path), **family.single_file_options, **options)
    except (SingleFileComponentError, *failures) as error:
        reason = f"it does not load as a {family.name} checkpoint ({type(error).__name__})"
        if config is None:
            reason += "; without the hub, single_file_config must name a folder with its settings"
        raise LoadError(str(path), reason) from error
    parts: Mapping[str, object] = pipeline.components
    encoders = [kind for kind in family.text_encoders if parts.get(kind.name) is not None]
    for name, (_, classes) in allowed_classes(encoders).items():
        class_name = type(parts[name]).__name__
        if class_name not in classes:
            raise LoadError(str(path), f"{name} is a {class_name}, which is not supported")
    scheduler = cast("diffusers.DDIMScheduler", parts["scheduler"])
    return family, Components(
        text_encoders=tuple(
            TextEncoder(
                cast("CLIPTokenizer", parts[kind.tokenizer]),
                cast("CLIPTextModel", parts[kind.name]),
                name=kind.name,
            )
            for kind in encoders
        ),
        unet=cast("diffusers.UNet2DConditionModel", parts["unet"]),
        vae=cast("AutoencoderKL | AutoencoderTiny", parts["vae"]),
        scheduler_config=dict(scheduler.config, _class_name=type(scheduler).__name__),
        projection=family.projection,
        options={
            name: bool(pipeline.config.get(name, default))
            for name, default in family.options.items()
        },
    )


class _Pipeline(Protocol):
    components: Mapping[str, object]
    config: Mapping[str, object]

    @classmethod
    def from_single_file(cls, path: str, **options: object) -> Self: ...


def _family(path: Path) -> Family:
    """Returns the family that a checkpoint is of, by the names of its tensors."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    for family in FAMILIES:
        if any(name.startswith(family.single_file_marker) for name in names):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise LoadError(str(path), f"it is no checkpoint of a family that is served: {known}")
