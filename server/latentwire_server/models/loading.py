"""Loads a model: from a diffusers folder, a hub id, or a single ``.safetensors`` checkpoint.

Runs in a thread of its own, before the model is handed to the engine. Downloads first, then looks,
then loads offline: what was looked at is what is loaded. Never runs code that comes with a model.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from latentwire_server.models.backends import DenoiserBackend
from latentwire_server.models.components import Components
from latentwire_server.models.description import describe, latent_projection
from latentwire_server.models.folder_settings import read_folder_settings
from latentwire_server.models.inspection import (
    brings_safety_checker,
    check_folder,
    check_safetensors,
    check_safety_checker,
    digest,
    downloaded_patterns,
    num_elements,
    read_content,
    read_json,
)
from latentwire_server.models.model_settings import ModelSettings
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

_CONVOLUTION_DIMENSIONS: Final = 4
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
        return dtype.itemsize * num_elements(path)
    folder, root, _ = _folder(source, path)
    weights = check_folder(folder, variant=source.variant, root=root)
    size_bytes = dtype.itemsize * _num_elements(weights, source)
    if source.safety_checker and brings_safety_checker(folder):
        checker = check_safety_checker(folder, variant=source.variant)
        size_bytes += torch.float32.itemsize * _num_elements(checker, source)
    return size_bytes


def _num_elements(weights: Iterable[Path], source: ModelSource) -> int:
    # A variant's name stands before the suffix; without one asked for, none is read.
    return sum(num_elements(path) for path in weights if source.variant or "." not in path.stem)


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
        if path.is_dir():
            raise
        return None  # Loading will download it, or tell why not.


def _load_model(source: ModelSource) -> UnetModel:
    device = choose_device(source.device)
    dtype = choose_dtype(source.dtype, device)
    path = Path(source.source).expanduser()
    if path.is_file():
        check_safetensors(path, source=source.source)
        family, parts = load_single_file(path, config=source.single_file_config, dtype=dtype)
        revision = digest((path,), folder=path.parent)
        settings = ModelSettings()
    else:
        folder, root, commit = _folder(source, path)
        weights = check_folder(folder, variant=source.variant, root=root)
        family, parts = _load_folder(folder, variant=source.variant, dtype=dtype)
        revision = commit or digest(weights, folder=folder)
        settings = read_folder_settings(folder)
        checker = _safety_checker(folder, source, device=device)
        parts = replace(parts, safety_checker=checker)
    parts = _with_options(parts, source)
    if has_weights():
        _check_weights(parts, source=source.source)
        parts = _place(parts, device=device, upcasts=family.upcasts_autoencoder)
    info = describe(source, family, parts, revision=revision, settings=settings)
    return family.model(
        _with_limits(info, source.limit_overrides),
        parts,
        backend=DenoiserBackend(source.backend),
    )


def _with_options(parts: Components, source: ModelSource) -> Components:
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
    return replace(parts, text_encoders=encoders, prompt_options=options, words=words)


def _folder(source: ModelSource, path: Path) -> tuple[Path, Path, str | None]:
    """Returns the folder, what its links may reach, and the hub's commit if it is from there."""
    if path.is_dir():
        return path, path, None
    looks_local = path.is_absolute() or source.source.startswith((".", "~"))
    if looks_local or source.source.count("/") != 1:
        raise LoadError(source.source, "there is no such folder or file, and it is no hub id")
    snapshot = _download(source)
    # The hub's cache keeps the files in `blobs`, beside `snapshots`.
    return snapshot, snapshot.parent.parent, snapshot.name


def _download(source: ModelSource) -> Path:
    wanted, unwanted = downloaded_patterns(
        variant=source.variant, with_safety_checker=source.safety_checker
    )
    try:
        return Path(
            snapshot_download(
                source.source,
                revision=source.revision,
                token=source.token,
                allow_patterns=wanted,
                ignore_patterns=unwanted,
                # Nothing is downloaded to look at a configuration.
                local_files_only=not has_weights(),
            )
        )
    except LocalEntryNotFoundError:
        reason = "it is neither in the local cache, nor can the hub be reached"
    except HFValidationError:
        reason = "it is no folder, no file and no valid hub id"
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no")
        reason = f"the hub answered with status {status}; private models need HF_TOKEN"
    except OSError as error:
        reason = f"the download failed: {os.strerror(error.errno) if error.errno else 'no network'}"
    raise LoadError(source.source, reason)


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
                _load(unet, folder, "unet", variant=variant, torch_dtype=dtype),
            ),
            vae=cast(
                "diffusers.AutoencoderKL | diffusers.AutoencoderTiny",
                _load(vae, folder, "vae", variant=variant, torch_dtype=dtype),
            ),
            scheduler_config=read_json(
                folder / "scheduler" / "scheduler_config.json", source=str(folder)
            ),
            projection=latent_projection(folder) or content.family.projection,
            options=content.options,
        )
    except _FAILURES as error:
        # The libraries' texts run over many lines; the first one says what it is.
        reason = f"a component does not load ({type(error).__name__}: {_first_line(error)})"
        raise LoadError(str(folder), reason) from error


def _text_encoder(
    folder: Path, kind: TextEncoderKind, *, variant: str | None, dtype: torch.dtype
) -> TextEncoder:
    tokenizer = transformers.CLIPTokenizer.from_pretrained(
        folder / kind.tokenizer, local_files_only=True
    )
    class_: object = getattr(transformers, kind.class_name)
    module = _load(class_, folder, kind.name, variant=variant, dtype=dtype)
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
        _check_module(module, name="safety_checker", source=str(folder))
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


def _load(kind: object, folder: Path, name: str, **options: object) -> torch.nn.Module:
    return read_component(kind, folder / name, **options)


def _check_weights(parts: Components, *, source: str) -> None:
    for name, network in parts.networks.items():
        _check_module(_of(network), name=name, source=source)


def _check_module(module: torch.nn.Module, *, name: str, source: str) -> None:
    for key, tensor in module.state_dict().items():
        if tensor.is_meta:
            # What a single-file checkpoint lacks is left without storage.
            raise LoadError(source, f"{name} has no tensor {key}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise LoadError(source, f"{name} has NaN or infinity in {key}")


def _place(parts: Components, *, device: torch.device, upcasts: bool) -> Components:
    """Moves the parts to the device, ready to compute.

    channels_last is faster wherever convolutions are: 24 % for Stable Diffusion 1.5's UNet and more
    than twofold for its autoencoder, on a CPU (measured).
    """
    if upcasts and parts.vae.dtype == torch.float16 and parts.vae.config.force_upcast:
        # It overflows in float16. The pipeline casts to and fro; the values are the same.
        _of(parts.vae).float()
    for network in parts.networks.values():
        _of(network).to(device).eval().requires_grad_(requires_grad=False)
    for network in (parts.unet, parts.vae):
        _in_channels_last(_of(network))
    return parts


def _of(module: object) -> torch.nn.Module:
    """Returns a component as the module that it is; its library's types do not say so."""
    return cast("torch.nn.Module", module)


def _in_channels_last(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() == _CONVOLUTION_DIMENSIONS:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)


def _with_limits(info: ModelInfo, overrides: Mapping[str, int]) -> ModelInfo:
    return replace(info, limits=replace(info.limits, **overrides)) if overrides else info


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
