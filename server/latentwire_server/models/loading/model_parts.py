"""A model's parts, read from its folder or its checkpoint: as they are there, on no device yet.

Loading threads only. Knows neither how a model is put together nor what else it is served with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

from latentwire_server.models.components.component_set import Components
from latentwire_server.models.components.library_lock import LIBRARY_LOCK
from latentwire_server.models.components.placement import check_module
from latentwire_server.models.components.safety_checker import (
    ClipSafetyChecker,
    UnloadedSafetyChecker,
    load_processor,
)
from latentwire_server.models.errors import LoadError
from latentwire_server.models.files.checked_files import check_safetensors, digest, read_json
from latentwire_server.models.files.hub import ModelFolder, model_folder
from latentwire_server.models.loading.description import latent_projection
from latentwire_server.models.loading.folder_settings import read_folder_settings
from latentwire_server.models.loading.inspection import (
    autoencoder_patterns,
    brings_safety_checker,
    check_folder,
    check_safety_checker,
    check_vae,
    downloaded_patterns,
    read_content,
)
from latentwire_server.models.loading.reading import has_weights, read_component
from latentwire_server.models.loading.single_file import load_single_file
from latentwire_server.models.model_options import ModelEntry
from latentwire_server.models.overrides import ModelSettings
from latentwire_server.models.text.clip_encoder import TextEncoder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

    from latentwire_server.models.families.family import Family, TextEncoderKind

_FAILURES: Final = (OSError, ValueError, RuntimeError, KeyError, TypeError)
"""What the libraries raise on files that are not what they should be."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lent:
    """Parts of one model that another works with too."""

    vae: AutoencoderKL | AutoencoderTiny | None = None
    text_encoders: tuple[TextEncoder, ...] = ()
    """All that the other one has, or none."""


def read_model(
    source: ModelEntry, *, device: torch.device, dtype: torch.dtype, lent: Lent | None = None
) -> tuple[Family, Components, str, ModelSettings]:
    """Returns the family, the parts, what tells their weights from others, and the settings.

    Args:
        source: where it comes from.
        device: where its safety checker will compute.
        dtype: number format of the parts.
        lent: parts that are not read, because another model has them.

    Raises:
        LoadError: it cannot be had or is not to be trusted.
    """
    path = Path(source.location).expanduser()
    if path.is_file():
        check_safetensors(path, source=source.location)
        with LIBRARY_LOCK:
            if has_weights() or source.single_file_config is None:
                family, parts = load_single_file(
                    path,
                    config=source.single_file_config,
                    dtype=dtype,
                    vae=None if lent is None else lent.vae,
                )
            else:
                config = Path(source.single_file_config)
                family, parts = _load_folder(config, variant=None, dtype=dtype, lent=lent)
        return family, parts, digest((path,), folder=path.parent), ModelSettings()
    found = source_folder(source)
    folder = found.path
    weights = check_folder(
        folder, variant=source.variant, root=found.root, is_whole=_is_whole(found)
    )
    with LIBRARY_LOCK:
        family, parts = _load_folder(folder, variant=source.variant, dtype=dtype, lent=lent)
        parts = replace(parts, safety_checker=_safety_checker(folder, source, device=device))
    revision = found.commit or digest(weights, folder=folder)
    return family, parts, revision, read_folder_settings(folder)


def refiner_of(entry: ModelEntry) -> ModelEntry | None:
    """Returns the refiner of a model as a model of its own; None: it has none."""
    if entry.refiner is None:
        return None
    return ModelEntry.model_construct(
        source=entry.refiner,
        id=f"{entry.id}/refiner",
        single_file_config=entry.refiner_single_file_config,
        safety_checker=False,
        **entry.model_dump(
            include={
                "variant",
                "dtype",
                "device",
                "denoiser_backend",
                "embeddings_folder",
                "prompt_weighting",
                "max_prompt_chunks",
            }
        ),
    )


def source_folder(source: ModelEntry) -> ModelFolder:
    """Returns where a model's folder is; fetches it where that is a hub id.

    Raises:
        LoadError: it cannot be had.
    """
    patterns = downloaded_patterns(
        variant=source.variant, with_safety_checker=source.safety_checker
    )
    return model_folder(source.location, revision=source.revision, patterns=patterns)


def vae_folder(wanted: str) -> ModelFolder:
    """Returns where an autoencoder's folder is; fetches it where that is a hub id.

    Raises:
        LoadError: it cannot be had.
    """
    patterns = (autoencoder_patterns(), ())
    return model_folder(wanted, revision=None, patterns=patterns)


def read_vae(wanted: str, *, dtype: torch.dtype) -> tuple[AutoencoderKL | AutoencoderTiny, str]:
    """Returns an autoencoder in place of the model's own, and what tells it from others.

    Raises:
        LoadError: it cannot be had or is not to be trusted.
    """
    found = vae_folder(wanted)
    folder, class_name, weights = check_vae(found.path, root=found.root, is_whole=_is_whole(found))
    try:
        with LIBRARY_LOCK:
            kind = getattr(diffusers, class_name)
            vae = _load(kind, folder.parent, folder.name, torch_dtype=dtype)
    except _FAILURES as error:
        reason = f"the autoencoder does not load ({type(error).__name__}: {_first_line(error)})"
        raise LoadError(wanted, reason) from error
    revision = found.commit or digest(weights, folder=folder)
    return cast("AutoencoderKL | AutoencoderTiny", vae), revision


def _is_whole(found: ModelFolder) -> bool:
    """Returns whether weights must be there: of a hub's model they may be yet to come."""
    return has_weights() or found.commit is None


def _load_folder(
    folder: Path, *, variant: str | None, dtype: torch.dtype, lent: Lent | None
) -> tuple[Family, Components]:
    content = read_content(folder)
    unet: object = diffusers.UNet2DConditionModel
    lent = Lent() if lent is None else lent
    try:
        return content.family, Components(
            text_encoders=lent.text_encoders
            or tuple(
                _text_encoder(folder, kind, variant=variant, dtype=dtype)
                for kind in content.text_encoders
            ),
            unet=cast(
                "diffusers.UNet2DConditionModel",
                _part(unet, folder, "unet", variant=variant, torch_dtype=dtype),
            ),
            vae=lent.vae
            or cast(
                "AutoencoderKL | AutoencoderTiny",
                _part(
                    getattr(diffusers, content.vae),
                    folder,
                    "vae",
                    variant=variant,
                    torch_dtype=dtype,
                ),
            ),
            scheduler_config=read_json(
                folder / "scheduler" / "scheduler_config.json", source=str(folder)
            ),
            projection=latent_projection(folder) or content.family.projection,
            options=content.options,
        )
    except _FAILURES as error:
        reason = f"a component does not load ({type(error).__name__}: {_first_line(error)})"
        raise LoadError(str(folder), reason) from error


def _text_encoder(
    folder: Path, kind: TextEncoderKind, *, variant: str | None, dtype: torch.dtype
) -> TextEncoder:
    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        folder / kind.tokenizer, local_files_only=True
    )
    class_: object = getattr(transformers, kind.class_name)
    module = _part(class_, folder, kind.name, variant=variant, dtype=dtype)
    return TextEncoder(tokenizer, cast("transformers.CLIPTextModel", module), name=kind.name)


def _safety_checker(
    folder: Path, source: ModelEntry, *, device: torch.device
) -> ClipSafetyChecker | UnloadedSafetyChecker | None:
    """Loads the safety checker that a folder brings, and sees it decide once."""
    if not source.safety_checker or not brings_safety_checker(folder):
        return None
    if not has_weights():
        return UnloadedSafetyChecker(hides_previews=not source.unchecked_previews)
    check_safety_checker(folder, variant=source.variant)
    options = {"variant": source.variant, "dtype": torch.float32}
    try:
        module = _load(StableDiffusionSafetyChecker, folder, "safety_checker", **options)
        check_module(module, name="safety_checker", source=str(folder))
        module.to(device).eval().requires_grad_(requires_grad=False)
        checker = ClipSafetyChecker(
            cast("StableDiffusionSafetyChecker", module),
            load_processor(folder),
            hides_previews=not source.unchecked_previews,
        )
        checker.flags(np.zeros((64, 64, 3), np.uint8))
    except (*_FAILURES, ArithmeticError) as error:
        reason = f"its safety checker fails ({type(error).__name__}: {_first_line(error)})"
        raise LoadError(str(folder), f"{reason}; safety_checker=false serves without") from error
    return checker


def _part(kind: object, folder: Path, name: str, **options: object) -> torch.nn.Module:
    """Loads a component of a model's own; the error says which."""
    try:
        return _load(kind, folder, name, **options)
    except _FAILURES as error:
        # The libraries' texts run over many lines; the first one says what it is.
        reason = f"{name} does not load ({type(error).__name__}: {_first_line(error)})"
        raise LoadError(str(folder), reason) from error


def _load(kind: object, folder: Path, name: str, **options: object) -> torch.nn.Module:
    return read_component(kind, folder / name, **options)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
