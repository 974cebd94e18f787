"""Finds a model's LoRA files: in the operator's folder, or on the hub. Loading threads only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from latentwire_server.models.errors import LoadError

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.models.files.hub import Hub
    from latentwire_server.models.model_options import ModelEntry


_NOT_IN_IDS: Final = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_ID: Final = 64


def lora_paths(entry: ModelEntry, hub: Hub) -> list[tuple[str, Path]]:
    """Returns the ids and files of LoRAs that may fit a model.

    Raises:
        LoadError: there is no such folder, or a file cannot be fetched from the hub.
    """
    paths = [] if entry.lora_folder is None else _in_folder(entry.lora_folder.expanduser())
    return paths + [_from_hub(name, hub) for name in entry.loras]


def _in_folder(folder: Path) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        raise LoadError(str(folder), "lora_folder is not a folder")
    root = folder.resolve()
    found = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    for path in found:
        if not path.resolve().is_relative_to(root):
            raise LoadError(str(folder), f"{path.name} is a link that leads out of the folder")
    return [(_id(path.stem), path) for path in found]


def _id(name: str) -> str:
    return _NOT_IN_IDS.sub("-", name).strip("-")[:_MAX_ID] or "lora"


def _from_hub(name: str, hub: Hub) -> tuple[str, Path]:
    """Fetches the file of ``owner/repository`` or ``owner/repository/file.safetensors``."""
    owner, _, rest = name.partition("/")
    repository, _, wanted = rest.partition("/")
    unwanted = () if wanted else ("*/*",)
    hub_id = f"{owner}/{repository}"
    folder = hub.folder(hub_id, wanted=[wanted or "*.safetensors"], unwanted=unwanted).path
    found = sorted(folder.glob(wanted or "*.safetensors"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        reason = f"needed: one .safetensors file, or its name after the id; found: {names}"
        raise LoadError(name, reason)
    # In most repositories the file is called pytorch_lora_weights, which says nothing.
    return _id(found[0].stem if wanted else repository), found[0]
