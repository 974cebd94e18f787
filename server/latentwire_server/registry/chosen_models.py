"""From the settings to the models that are served."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from latentwire_server.models.components.watermark import MISSING_WATERMARK
from latentwire_server.models.model_options import local_path
from latentwire_server.registry.loadable_model import ConfiguredModel
from latentwire_server.settings.files import SettingsError, user_cache

if TYPE_CHECKING:
    from pathlib import Path

    from latentwire_server.registry.loadable_model import LoadableModel
    from latentwire_server.settings.settings import Settings


def chosen_models(settings: Settings) -> tuple[LoadableModel, ...]:
    """Returns the models that the settings name, the default one first.

    Raises:
        SettingsError: One names a folder, a file or a package that is not there.
    """
    _check_folder(settings.embeddings_folder, field="embeddings_folder")
    for index, entry in enumerate(settings.entries):
        place, owner, source = "", "", "model"
        if settings.models:
            place, owner, source = f"models[{index}].", f", of the model {entry.id!r}", "source"
        folder = entry.embeddings_folder
        _check_folder(folder, field=f"{place}embeddings_folder", owner=owner)
        for name, value in ((source, entry.source), ("refiner", entry.refiner), ("vae", entry.vae)):
            path = None if value is None else local_path(value)
            if path is not None and not path.exists():
                why = "there is no such folder or file, and it is no hub id"
                message = f"{place}{name}={value!r}{owner}: {why}"
                raise SettingsError(message)
        if entry.watermark and importlib.util.find_spec("imwatermark") is None:
            message = f"{place}watermark=true: {MISSING_WATERMARK}"
            raise SettingsError(message)
    return tuple(
        ConfiguredModel(
            entry,
            limits={
                name: limit
                for name, limit in settings.limit_overrides.items()
                if getattr(entry.limits, name, None) is None
            },
            preload=index == 0 if entry.preload is None else entry.preload,
            denoiser_cache=user_cache() / "openvino",
        )
        for index, entry in enumerate(settings.entries)
    )


def _check_folder(folder: Path | None, *, field: str, owner: str = "") -> None:
    if folder is not None and not folder.expanduser().is_dir():
        message = f"{field}={str(folder)!r}{owner}: there is no such folder"
        raise SettingsError(message)
