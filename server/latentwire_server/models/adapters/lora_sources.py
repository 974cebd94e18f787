"""Where a model's adapters come from: a folder of the operator's, or the hub. Loading threads."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

import diffusers

from latentwire_server.models.adapters.lora_networks import LoraStore
from latentwire_server.models.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from latentwire_server.models.adapters.lora_file import LoraLoader
    from latentwire_server.models.components.component_set import Components
    from latentwire_server.models.families.family import Family
    from latentwire_server.models.files.hub import Hub
    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.model_options import ModelEntry


_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_ID: Final = 64


def lora_paths(entry: ModelEntry, hub: Hub) -> list[tuple[str, Path]]:
    """Returns the files that may be adapters of a model, each with what requests call it.

    Raises:
        LoadError: the folder is none, or a file of the hub cannot be had.
    """
    paths = [] if entry.lora_folder is None else _in_folder(entry.lora_folder.expanduser())
    return paths + [_from_hub(name, hub) for name in entry.loras]


def with_loras(
    parts: Components, info: ModelInfo, *, family: Family, paths: Sequence[tuple[str, Path]]
) -> tuple[Components, ModelInfo]:
    """Returns a model's parts and description with the adapters that fit."""
    loader = cast("LoraLoader", getattr(diffusers, family.single_file_pipeline))
    store = LoraStore(paths, parts, loader=loader)
    capabilities = (*info.capabilities, "lora") if store.infos else info.capabilities
    return replace(parts, loras=store), replace(
        info, capabilities=capabilities, loras=store.infos, unfit_loras=store.unfit
    )


def _in_folder(folder: Path) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        raise LoadError(str(folder), "lora_folder is no folder")
    root = folder.resolve()
    found = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    for path in found:
        if not path.resolve().is_relative_to(root):
            raise LoadError(str(folder), f"{path.name} is a link that leads out of the folder")
    return [(_id(path.stem), path) for path in found]


def _id(name: str) -> str:
    return _NOT_IN_IDS.sub("-", name).strip("-")[:_MAX_ID] or "lora"


def _from_hub(name: str, hub: Hub) -> tuple[str, Path]:
    """Returns the file of ``owner/repository`` or ``owner/repository/file.safetensors``."""
    owner, _, rest = name.partition("/")
    repository, _, wanted = rest.partition("/")
    unwanted = () if wanted else ("*/*",)
    hub_id = f"{owner}/{repository}"
    folder = hub.folder(hub_id, wanted=[wanted or "*.safetensors"], unwanted=unwanted).path
    found = sorted(folder.glob(wanted or "*.safetensors"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        reason = f"needed: one .safetensors file, or its name behind the id; there is: {names}"
        raise LoadError(name, reason)
    # Most repositories call theirs pytorch_lora_weights.
    return _id(found[0].stem if wanted else repository), found[0]
