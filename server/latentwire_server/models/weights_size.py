"""What a model's weights take once they are loaded, told before they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from latentwire_server.models.files import check_safetensors, num_elements
from latentwire_server.models.inspection import (
    brings_safety_checker,
    check_folder,
    check_safety_checker,
    check_vae,
)
from latentwire_server.models.model_parts import source_folder, vae_folder
from latentwire_server.models.precision import choose_device, choose_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latentwire_server.models.source import ModelSource


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
    found = source_folder(source)
    folder = found.path
    weights = check_folder(folder, variant=source.variant, root=found.root)
    size_bytes = dtype.itemsize * _num_elements(weights, source)
    refiner = source.of_refiner
    if refiner is not None:
        size_bytes += weights_bytes(refiner)
    if source.vae is not None:
        found = vae_folder(source, source.vae)
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
