"""Files and folders of the operator and the user: what settings name, and the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic_settings import BaseSettings

from latentwire._services.settings import SettingsError, read_file, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import SecretStr

__all__ = ["SettingsError", "read_file", "read_keys", "read_lines", "user_cache"]


def read_lines(field: str, path: Path) -> list[str]:
    """Returns the lines of a file without comments and empty lines.

    Raises:
        SettingsError: The file cannot be read or is not UTF-8.
    """
    lines = read_text(field, path).splitlines()
    return [entry for line in lines if (entry := line.split("#", 1)[0].strip())]


def read_keys(keys: Iterable[SecretStr], field: str, path: Path | None) -> tuple[str, ...]:
    """Returns the keys of a setting, and those in the file that ``field`` names.

    Raises:
        SettingsError: The file cannot be read or holds no key.
    """
    from_file = [] if path is None else read_lines(field, path)
    if path is not None and not from_file:
        message = f"{field}={str(path)!r}: holds no key"
        raise SettingsError(message)
    return (*(key.get_secret_value() for key in keys), *from_file)


class _Environment(BaseSettings):
    xdg_cache_home: str = ""


def user_cache() -> Path:
    """Returns the folder for files that can be made again (XDG Base Directory Specification)."""
    return Path(_Environment().xdg_cache_home or Path.home() / ".cache") / "latentwire"
