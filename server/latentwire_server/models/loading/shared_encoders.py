"""Whether a refiner's text encoders are its base's, so that they need to be in memory only once.

Decided by the content of the files, before either is loaded. Loading threads only.
"""

from __future__ import annotations

import filecmp
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latentwire_server.models.loading.diffusers_folder import DiffusersFolder

_PROVENANCE: Final = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
)
"""What configurations say about how they came about."""


def shared_text_encoders(refiner: DiffusersFolder, base: DiffusersFolder) -> tuple[str, ...]:
    """Returns the names of a refiner's text encoders if its base has all of them, and else none.

    Raises:
        LoadError: a configuration of one of the two cannot be read.
    """
    variant = refiner.variant
    weights = ".safetensors" if variant is None else f".{variant}.safetensors"
    kinds = refiner.index.text_encoders
    are_shared = all(
        kind in base.index.text_encoders
        and _are_alike(refiner, base, kind.tokenizer, suffix=".txt")
        and _are_alike(refiner, base, kind.name, suffix=weights)
        for kind in kinds
    )
    return tuple(kind.name for kind in kinds) if are_shared else ()


def _are_alike(
    refiner: DiffusersFolder, base: DiffusersFolder, component: str, *, suffix: str
) -> bool:
    """Returns whether both have the same configuration, and the same files with this suffix."""
    one, other = (folder.path / component for folder in (refiner, base))
    names = [sorted(path.name for path in place.glob(f"*{suffix}")) for place in (one, other)]
    return (
        names[0] == names[1]
        and _configuration(refiner, component) == _configuration(base, component)
        # Read whole, once: the module remembers what it compared.
        and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])
    )


def _configuration(folder: DiffusersFolder, component: str) -> dict[str, object]:
    """Returns the content of a component's JSON files, by their names."""
    return {
        path.name: {
            key: value
            for key, value in folder.json(f"{component}/{path.name}").items()
            if key not in _PROVENANCE
        }
        for path in sorted((folder.path / component).glob("*.json"))
    }
