"""What a model takes in memory once it is loaded, told before it is.

Read off the headers of its files, but for what its denoiser is compiled into: that is reckoned from
the size of its weights, since how many programs pay is only measured later.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from latentwire_server.models.backends import DenoiserBackend, expected_programs_bytes
from latentwire_server.models.files import check_safetensors, num_elements
from latentwire_server.models.info import ModelSize
from latentwire_server.models.inspection import (
    brings_safety_checker,
    check_folder,
    check_safety_checker,
    check_vae,
)
from latentwire_server.models.model_parts import source_folder, vae_folder
from latentwire_server.models.precision import choose_device, choose_dtype
from latentwire_server.models.single_file import SINGLE_FILE_UNET

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latentwire_server.models.source import ModelSource


def weights_bytes(source: ModelSource) -> int:
    """Returns what a model's weights take once they are loaded.

    Raises:
        LoadError, PrecisionError: as ``model_size``.
    """
    return model_size(source).weights_bytes


def model_size(source: ModelSource) -> ModelSize:
    """Returns what a model takes once it is loaded. What is not on this machine is downloaded.

    Raises:
        LoadError: it cannot be had or is not to be trusted.
        PrecisionError: the device or the number format cannot be had here.
    """
    device = choose_device(source.device)
    dtype = choose_dtype(source.dtype, device)
    path = Path(source.source).expanduser()
    if path.is_file():
        check_safetensors(path, source=source.source)
        own = dtype.itemsize * num_elements(path, source=source.source)
        prefix = SINGLE_FILE_UNET
        unet = dtype.itemsize * num_elements(path, source=source.source, prefix=prefix)
    else:
        found = source_folder(source)
        weights = check_folder(found.path, variant=source.variant, root=found.root)
        own = dtype.itemsize * _num_elements(weights, source)
        of_unet = (path for path in weights if path.parent.name == "unet")
        unet = dtype.itemsize * _num_elements(of_unet, source)
        own += _safety_checker_bytes(found.path, source)
    backend = DenoiserBackend(source.backend)
    size = ModelSize(
        weights_bytes=own + _vae_bytes(source, dtype=dtype) + _words_bytes(source),
        programs_bytes=expected_programs_bytes(unet, backend=backend, device=device),
    )
    if source.of_refiner is None:
        return size
    refiner = model_size(source.of_refiner)
    return ModelSize(
        weights_bytes=size.weights_bytes + refiner.weights_bytes,
        programs_bytes=size.programs_bytes + refiner.programs_bytes,
    )


def _vae_bytes(source: ModelSource, *, dtype: torch.dtype) -> int:
    """Returns what an autoencoder in place of the model's own takes, which is read as well."""
    if source.vae is None:
        return 0
    found = vae_folder(source, source.vae)
    _, _, weights = check_vae(found.path, root=found.root)
    return dtype.itemsize * _num_elements(weights, source)


def _safety_checker_bytes(folder: Path, source: ModelSource) -> int:
    if not (source.safety_checker and brings_safety_checker(folder)):
        return 0
    weights = check_safety_checker(folder, variant=source.variant)
    return torch.float32.itemsize * _num_elements(weights, source)


def _words_bytes(source: ModelSource) -> int:
    """Returns what the words of a folder take, about: what their files do."""
    if source.embeddings_folder is None:
        return 0
    files = source.embeddings_folder.expanduser().glob("*.safetensors")
    return sum(path.stat().st_size for path in files if path.is_file())


def _num_elements(weights: Iterable[Path], source: ModelSource) -> int:
    # A variant's name stands before the suffix; without one asked for, none is read.
    return sum(
        num_elements(path, source=source.source)
        for path in weights
        if source.variant or "." not in path.stem
    )
