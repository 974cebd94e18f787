"""Whether a refiner's text encoders are its base's, so that they need to be in memory only once.

Told by the files' contents, before either is loaded. Loading threads only.
"""

from __future__ import annotations

import filecmp
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latentwire_server.models.files.checked_files import read_json
from latentwire_server.models.loading.inspection import read_content
from latentwire_server.models.loading.model_parts import source_folder

if TYPE_CHECKING:
    from latentwire_server.models.model_options import ModelEntry

_MARGINALIA: Final = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
)
"""What configurations say of how they came about."""


def shared_text_encoders(refiner: ModelEntry, base: ModelEntry) -> tuple[str, ...]:
    """Returns the names of a refiner's text encoders if its base has all of them, and else none.

    Raises:
        LoadError: one of the two is no diffusers folder of a kind that is served.
    """
    if any(Path(one.location).expanduser().is_file() for one in (refiner, base)):
        return ()
    variant = refiner.variant
    weights = ".safetensors" if variant is None else f".{variant}.safetensors"
    own, others = (source_folder(one).path for one in (refiner, base))
    kinds, base_kinds = (read_content(folder).text_encoders for folder in (own, others))
    are_shared = all(
        kind in base_kinds
        and _are_alike(own / kind.tokenizer, others / kind.tokenizer, ending=".txt")
        and _are_alike(own / kind.name, others / kind.name, ending=weights)
        for kind in kinds
    )
    return tuple(kind.name for kind in kinds) if are_shared else ()


def _are_alike(one: Path, other: Path, *, ending: str) -> bool:
    """Returns whether two folders have the same settings, and the same files of this ending."""
    names = [_names(place, ending) for place in (one, other)]
    return (
        names[0] == names[1]
        and _settings(one) == _settings(other)
        # Read whole, once: the module remembers what it compared.
        and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])
    )


def _names(place: Path, ending: str) -> list[str]:
    return sorted(path.name for path in place.glob("*") if path.name.endswith(ending))


def _settings(place: Path) -> dict[str, object]:
    """Returns what a folder's JSON files say, by their names."""
    return {
        path.name: {
            key: value
            for key, value in read_json(path, source=str(place.parent)).items()
            if key not in _MARGINALIA
        }
        for path in sorted(place.glob("*.json"))
    }
