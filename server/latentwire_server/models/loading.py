"""Loads a model: from a diffusers folder, a hub id, or a single ``.safetensors`` checkpoint.

Runs in a thread of its own, before the model is handed to the engine. Downloads first, then looks,
then loads offline: what was looked at is what is loaded. Never runs code that comes with a model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

from latentwire_server.models.backends import DenoiserBackend
from latentwire_server.models.components import Components
from latentwire_server.models.description import describe, latent_projection, with_refiner
from latentwire_server.models.files import check_safetensors, digest, num_elements, read_json
from latentwire_server.models.folder_settings import read_folder_settings
from latentwire_server.models.hub import ModelFolder, model_folder
from latentwire_server.models.inspection import (
    autoencoder_patterns,
    brings_safety_checker,
    check_folder,
    check_safety_checker,
    check_vae,
    downloaded_patterns,
    read_content,
)
from latentwire_server.models.library_lock import LIBRARY_LOCK
from latentwire_server.models.lora_sources import lora_paths, with_shelf
from latentwire_server.models.model_settings import ModelSettings
from latentwire_server.models.placement import check_module, check_parts, place
from latentwire_server.models.precision import choose_device, choose_dtype
from latentwire_server.models.prompt_reader import PromptOptions
from latentwire_server.models.reading import (
    ReportingReader,
    has_weights,
    read_component,
    reading,
    without_weights,
)
from latentwire_server.models.safety_checker import (
    ClipSafetyChecker,
    UnloadedSafetyChecker,
    load_processor,
)
from latentwire_server.models.single_file import load_single_file
from latentwire_server.models.source import LoadError, ModelSource, embedded_source
from latentwire_server.models.text_encoder import TextEncoder
from latentwire_server.models.textual_inversion import load_words, words_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from latentwire_server.models.family import Family, TextEncoderKind
    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.model import ModelOutline
    from latentwire_server.models.unet_model import UnetModel

__all__ = [
    "LoadError",
    "ModelSource",
    "embedded_source",
    "load_model",
    "outline_model",
    "weights_bytes",
]

_FAILURES: Final = (OSError, ValueError, RuntimeError, KeyError, TypeError)
"""What the libraries raise on files that are not what they should be."""


def load_model(
    source: ModelSource, *, report: Callable[[int, int], None] | None = None
) -> UnetModel:
    """Loads a model onto its device.

    Args:
        source: where it comes from.
        report: is told the bytes that are loaded, component by component, and those of all.

    Raises:
        LoadError: it cannot be had or is not to be trusted; one line says why.
        PrecisionError: the device or the number format cannot be had here.
        BackendError: the denoiser's backend cannot be had here.
    """
    if report is None:
        return _load_model(source)
    reader = ReportingReader(report, total_bytes=weights_bytes(source))
    with reading(reader):
        return _load_model(source)


def weights_bytes(source: ModelSource) -> int:
    """Returns what a model's weights take once they are loaded, by the headers of its files.

    What is not on this machine is downloaded.

    Raises:
        LoadError: it cannot be had or is not to be trusted.
        PrecisionError: the device or the number format cannot be had here.
    """
    dtype = choose_dtype(source.dtype, choose_device(source.device))
    path = Path(source.source).expanduser()
    if path.is_file():
        check_safetensors(path, source=source.source)
        return dtype.itemsize * num_elements(path, source=source.source)
    found = _folder(source)
    folder = found.path
    weights = check_folder(folder, variant=source.variant, root=found.root)
    size_bytes = dtype.itemsize * _num_elements(weights, source)
    if source.refiner is not None:
        size_bytes += weights_bytes(_refiner_source(source, source.refiner))
    if source.vae is not None:
        found = _vae_folder(source, source.vae)
        _, _, vae = check_vae(found.path, root=found.root)
        size_bytes += dtype.itemsize * _num_elements(vae, source)
    if source.safety_checker and brings_safety_checker(folder):
        checker = check_safety_checker(folder, variant=source.variant)
        size_bytes += torch.float32.itemsize * _num_elements(checker, source)
    return size_bytes


def _num_elements(weights: Iterable[Path], source: ModelSource) -> int:
    # A variant's name stands before the suffix; without one asked for, none is read.
    return sum(
        num_elements(path, source=source.source)
        for path in weights
        if source.variant or "." not in path.stem
    )


def outline_model(source: ModelSource) -> ModelOutline | None:
    """Returns what a model's configuration tells, without its weights.

    None where that is not to be had without them: of a single checkpoint, and of a hub model that
    is not on this machine, for which nothing is downloaded.

    Raises:
        LoadError: it is not to be trusted, or of a kind that is not served.
    """
    path = Path(source.source).expanduser()
    if path.is_file():
        return None
    try:
        with reading(without_weights):
            return _load_model(replace(source, backend=DenoiserBackend.EAGER.value))
    except LoadError:
        if path.is_dir() and not source.loras:
            raise
        return None  # Loading will download it, or tell why not.


def _load_model(source: ModelSource) -> UnetModel:
    device = choose_device(source.device)
    dtype = choose_dtype(source.dtype, device)
    family, parts, revisions, settings = _read(source, device=device, dtype=dtype)
    if source.vae is not None:
        vae, revision = _load_vae(source, source.vae, dtype=dtype)
        parts, revisions = replace(parts, vae=vae), [*revisions, revision]
    components = _finished(source, family, parts, device=device)
    info = describe(source, family, components, revision="", settings=settings)
    refiner = None
    if source.refiner is not None:
        refiner = _load_refiner(source, info, components, device=device, dtype=dtype)
        info = with_refiner(info, high_noise_frac=source.high_noise_frac)
        revisions.append(refiner.info.revision)
    info = replace(info, revision="+".join(revisions))
    paths = lora_paths(source)
    if paths:
        components, info = with_shelf(components, info, family=family, paths=paths)
    return family.model(
        _with_limits(info, source.limit_overrides),
        components,
        backend=DenoiserBackend(source.backend),
        refiner=refiner,
    )


def _read(
    source: ModelSource, *, device: torch.device, dtype: torch.dtype
) -> tuple[Family, Components, list[str], ModelSettings]:
    """Returns the family, the parts, what tells their weights from others, and the settings."""
    path = Path(source.source).expanduser()
    if path.is_file():
        check_safetensors(path, source=source.source)
        with LIBRARY_LOCK:
            family, parts = load_single_file(path, config=source.single_file_config, dtype=dtype)
        return family, parts, [digest((path,), folder=path.parent)], ModelSettings()
    found = _folder(source)
    folder = found.path
    weights = check_folder(folder, variant=source.variant, root=found.root)
    with LIBRARY_LOCK:
        family, parts = _load_folder(folder, variant=source.variant, dtype=dtype)
        parts = replace(parts, safety_checker=_safety_checker(folder, source, device=device))
    revision = found.commit or digest(weights, folder=folder)
    return family, parts, [revision], read_folder_settings(folder)


def _folder(source: ModelSource) -> ModelFolder:
    patterns = downloaded_patterns(
        variant=source.variant, with_safety_checker=source.safety_checker
    )
    return model_folder(
        source.source, revision=source.revision, token=source.token, patterns=patterns
    )


def _finished(
    source: ModelSource, family: Family, parts: Components, *, device: torch.device
) -> Components:
    """Returns the parts, reading prompts as they are told to, checked and on the device."""
    options = PromptOptions(
        is_weighted=source.prompt_weighting, max_chunks=source.max_prompt_chunks
    )
    words: tuple[str, ...] = ()
    if source.embeddings_folder is not None:
        learnt = load_words if has_weights() else words_in
        words = learnt(source.embeddings_folder.expanduser(), parts.text_encoders)
    encoders = tuple(
        encoder.reading(options, has_words=bool(words)) for encoder in parts.text_encoders
    )
    parts = replace(parts, text_encoders=encoders, prompt_options=options, words=words)
    if not has_weights():
        return parts
    check_parts(parts, source=source.source)
    return place(parts, device=device, upcasts=family.upcasts_autoencoder)


def _refiner_source(base: ModelSource, refiner: str) -> ModelSource:
    return replace(
        base,
        id=f"{base.id}/refiner",
        source=refiner,
        revision=None,
        safety_checker=False,
        overrides=None,
        # Words are learnt for the model's own encoders.
        embeddings_folder=None,
        lora_folder=None,
        loras=(),
        refiner=None,
        vae=None,
    )


def _load_refiner(
    base: ModelSource,
    info: ModelInfo,
    components: Components,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> UnetModel:
    """Loads a refiner. It works on the model's latents, and hence with its autoencoder."""
    source = _refiner_source(base, str(base.refiner))
    family, parts, (revision, *_), settings = _read(source, device=device, dtype=dtype)
    if family.name != info.family:
        reason = f"its refiner is of the family {family.name}; needed: {info.family}"
        raise LoadError(base.source, reason)
    if components.unet.config.in_channels != components.unet.config.out_channels:
        raise LoadError(base.source, "a model that is made for inpainting takes no refiner")
    own = _finished(source, family, replace(parts, vae=components.vae), device=device)
    described = describe(source, family, own, revision=revision, settings=settings)
    return family.model(described, own, backend=DenoiserBackend(base.backend))


def _vae_folder(source: ModelSource, wanted: str) -> ModelFolder:
    patterns = (autoencoder_patterns(), ())
    return model_folder(wanted, revision=None, token=source.token, patterns=patterns)


def _load_vae(
    source: ModelSource, wanted: str, *, dtype: torch.dtype
) -> tuple[diffusers.AutoencoderKL | diffusers.AutoencoderTiny, str]:
    """Loads an autoencoder in place of the model's own, with what tells it from others."""
    found = _vae_folder(source, wanted)
    folder, class_name, weights = check_vae(found.path, root=found.root)
    try:
        with LIBRARY_LOCK:
            kind = getattr(diffusers, class_name)
            vae = _load(kind, folder.parent, folder.name, torch_dtype=dtype)
    except _FAILURES as error:
        reason = f"the autoencoder does not load ({type(error).__name__}: {_first_line(error)})"
        raise LoadError(wanted, reason) from error
    revision = found.commit or digest(weights, folder=folder)
    return cast("diffusers.AutoencoderKL | diffusers.AutoencoderTiny", vae), revision


def _load_folder(
    folder: Path, *, variant: str | None, dtype: torch.dtype
) -> tuple[Family, Components]:
    content = read_content(folder)
    unet: object = diffusers.UNet2DConditionModel
    vae: object = getattr(diffusers, content.vae)
    try:
        return content.family, Components(
            text_encoders=tuple(
                _text_encoder(folder, kind, variant=variant, dtype=dtype)
                for kind in content.text_encoders
            ),
            unet=cast(
                "diffusers.UNet2DConditionModel",
                _part(unet, folder, "unet", variant=variant, torch_dtype=dtype),
            ),
            vae=cast(
                "diffusers.AutoencoderKL | diffusers.AutoencoderTiny",
                _part(vae, folder, "vae", variant=variant, torch_dtype=dtype),
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
    folder: Path, source: ModelSource, *, device: torch.device
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


def _with_limits(info: ModelInfo, overrides: Mapping[str, int]) -> ModelInfo:
    return replace(info, limits=replace(info.limits, **overrides)) if overrides else info


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
