"""What a model takes in memory once it is loaded, told before it is.

Read off the headers of its files, but for what its denoiser is compiled into: that is reckoned from
the size of its weights, since how many programs pay is only measured later.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from latentwire_server.models.denoiser.backends import DenoiserBackend, expected_programs_bytes
from latentwire_server.models.files.checked_files import check_safetensors, num_elements
from latentwire_server.models.info import ModelSize
from latentwire_server.models.loading.inspection import (
    brings_safety_checker,
    check_folder,
    check_safety_checker,
    check_vae,
)
from latentwire_server.models.loading.model_parts import refiner_of, source_folder, vae_folder
from latentwire_server.models.loading.shared_encoders import shared_text_encoders
from latentwire_server.models.loading.single_file import SINGLE_FILE_UNET, SINGLE_FILE_VAE
from latentwire_server.models.precision import choose_device, choose_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latentwire_server.models.model_options import ModelEntry


def weights_bytes(source: ModelEntry) -> int:
    """Returns what a model's weights take once they are loaded.

    Raises:
        LoadError, PrecisionError: as ``model_size``.
    """
    return model_size(source).weights_bytes


def model_size(source: ModelEntry) -> ModelSize:
    """Returns what a model takes once it is loaded. What is not on this machine is downloaded.

    Raises:
        LoadError: it cannot be had or is not to be trusted.
        PrecisionError: the device or the number format cannot be had here.
    """
    size = _size(source)
    of_refiner = refiner_of(source)
    if of_refiner is None:
        return size
    # A refiner works with its base's autoencoder, and with the text encoders that both have.
    borrowed = ("vae", *shared_text_encoders(of_refiner, source))
    refiner = _size(of_refiner, unread=borrowed)
    return ModelSize(
        weights_bytes=size.weights_bytes + refiner.weights_bytes,
        programs_bytes=size.programs_bytes + refiner.programs_bytes,
    )


def _size(source: ModelEntry, *, unread: tuple[str, ...] = ()) -> ModelSize:
    """Returns what a model takes without its refiner, but for parts that are not read."""
    device = choose_device(source.device)
    dtype = choose_dtype(source.dtype, device)
    path = Path(source.location).expanduser()
    if path.is_file():
        check_safetensors(path, source=source.location)
        own = dtype.itemsize * num_elements(path, source=source.location)
        if "vae" in unread:
            prefix = SINGLE_FILE_VAE
            own -= dtype.itemsize * num_elements(path, source=source.location, prefix=prefix)
        prefix = SINGLE_FILE_UNET
        unet = dtype.itemsize * num_elements(path, source=source.location, prefix=prefix)
    else:
        found = source_folder(source)
        weights = check_folder(found.path, variant=source.variant, root=found.root)
        weights = tuple(path for path in weights if path.parent.name not in unread)
        own = dtype.itemsize * _num_elements(weights, source)
        of_unet = (path for path in weights if path.parent.name == "unet")
        unet = dtype.itemsize * _num_elements(of_unet, source)
        own += _safety_checker_bytes(found.path, source)
    # In the tables of text encoders; those that are lent have theirs already.
    words = 0 if set(unread) - {"vae"} else _words_bytes(source)
    backend = DenoiserBackend(source.denoiser_backend)
    return ModelSize(
        weights_bytes=own + _vae_bytes(source, dtype=dtype) + words,
        programs_bytes=expected_programs_bytes(unet, backend=backend, device=device),
    )


def _vae_bytes(source: ModelEntry, *, dtype: torch.dtype) -> int:
    """Returns what an autoencoder in place of the model's own takes, which is read as well."""
    if source.vae is None:
        return 0
    found = vae_folder(source.vae)
    _, _, weights = check_vae(found.path, root=found.root)
    return dtype.itemsize * _num_elements(weights, source)


def _safety_checker_bytes(folder: Path, source: ModelEntry) -> int:
    if not (source.safety_checker and brings_safety_checker(folder)):
        return 0
    weights = check_safety_checker(folder, variant=source.variant)
    return torch.float32.itemsize * _num_elements(weights, source)


def _words_bytes(source: ModelEntry) -> int:
    """Returns what the words of a folder take, about: what their files do."""
    if source.embeddings_folder is None:
        return 0
    files = source.embeddings_folder.expanduser().glob("*.safetensors")
    return sum(path.stat().st_size for path in files if path.is_file())


def _num_elements(weights: Iterable[Path], source: ModelEntry) -> int:
    # A variant's name stands before the suffix; without one asked for, none is read.
    return sum(
        num_elements(path, source=source.location)
        for path in weights
        if source.variant or "." not in path.stem
    )
