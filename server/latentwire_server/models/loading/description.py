"""What a model is and can do, according to its parts and its folder's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentwire_server.models.errors import LoadError
from latentwire_server.models.loading.folder_settings import SETTINGS_FILE

if TYPE_CHECKING:
    from latentwire_server.models.components.component_set import Components
    from latentwire_server.models.info import ModelInfo
    from latentwire_server.models.loading.checkpoint import Checkpoint
    from latentwire_server.models.loading.diffusers_folder import DiffusersFolder


def describe(files: DiffusersFolder | Checkpoint, parts: Components, *, id_: str) -> ModelInfo:
    """Returns the description of a model, without the settings of the operator.

    Args:
        files: its files.
        parts: what it is made of.
        id_: its id.

    Raises:
        LoadError: the parts make no model that is supported, or its settings are wrong.
    """
    refusal = files.family.refusal(parts)
    if refusal is not None:
        raise LoadError(files.source, refusal)
    info = files.family.describe(parts, id_=id_)
    return files.settings.apply_to(info, source=files.source, place=SETTINGS_FILE)
