"""``latentwire.json`` in a model folder: what diffusers has no place for.

The file is the model's own word about itself: its display name, what a request gets that does not
say, and how far a request may go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from latentwire_server.models.files import read_json
from latentwire_server.models.inspection import SETTINGS_FILE
from latentwire_server.models.model_settings import ModelSettings
from latentwire_server.models.source import LoadError

if TYPE_CHECKING:
    from pathlib import Path


def read_folder_settings(folder: Path) -> ModelSettings:
    """Returns what a folder's ``latentwire.json`` says; nothing if it has none.

    Raises:
        LoadError: it is not understood; the first setting that is wrong is named.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return ModelSettings()
    try:
        return ModelSettings.model_validate(read_json(path, source=str(folder)))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        reason = f"{SETTINGS_FILE}: {place}={problem['input']!r}: {problem['msg']}"
        raise LoadError(str(folder), reason) from None
