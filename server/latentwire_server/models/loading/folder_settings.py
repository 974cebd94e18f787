"""``latentwire.json`` in a model folder: what diffusers has no place for.

The file is the model's own word about itself: its display name, what a request gets that does not
say, and how far a request may go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from latentwire_server.models.errors import LoadError
from latentwire_server.models.files.checked_files import read_json
from latentwire_server.models.loading.inspection import SETTINGS_FILE
from latentwire_server.models.overrides import ModelSettings

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import ErrorDetails


def read_folder_settings(folder: Path) -> ModelSettings:
    """Returns what a folder's ``latentwire.json`` says; nothing if it has none.

    Raises:
        LoadError: it is not understood; every setting that is wrong is named.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return ModelSettings()
    try:
        return ModelSettings.model_validate(read_json(path, source=str(folder)))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        reason = f"{SETTINGS_FILE}: {'; '.join(map(_told, problems))}"
        raise LoadError(str(folder), reason) from None


def _told(problem: ErrorDetails) -> str:
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(ModelSettings.fields_at(problem["loc"][:-1]))
        message = f"there is no such field, only: {allowed}"
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}={problem['input']!r}: {message}"
