"""Files that settings name: the configuration file, key files, word lists."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic_settings import (
    TomlConfigSettingsSource,
)

CONFIG_FILE: Final = Path("latentwire.toml")


TABLES: Final = ("server", "bridge", "models")
"""What the configuration file may hold."""


class SettingsError(Exception):
    """The settings cannot be used; the text is one line for the operator."""


def _lines(field: str, path: Path) -> list[str]:
    """Returns the lines of a file without comments and empty ones."""
    try:
        lines = read_file(field, path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        message = f"{field}={str(path)!r}: is not UTF-8"
        raise SettingsError(message) from None
    return [entry for line in lines if (entry := line.split("#", 1)[0].strip())]


class _ConfigurationFile(TomlConfigSettingsSource):
    """``[server]``, and ``[[models]]`` beside it; there need not be a file."""

    def __call__(self) -> dict[str, object]:
        """Returns the fields that the file sets.

        Raises:
            ValueError: it has tables that mean nothing.
        """
        tables = super().__call__()
        strange = [name for name in tables if name not in TABLES]
        if strange:
            message = f"no such table: {', '.join(strange)}; there are: {', '.join(TABLES)}"
            raise ValueError(message)
        server = tables.get("server", {})
        if not isinstance(server, dict):
            message = f"server={server!r}: needed: a table, [server]"
            raise ValueError(message)  # noqa: TRY004 - a setting that is wrong
        listed = {"models": tables["models"]} if "models" in tables else {}
        return {**server, **listed}


def read_file(field: str, path: Path) -> bytes:
    """Returns the bytes of a file that a setting names.

    Raises:
        SettingsError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{field}={str(path)!r}: {error.strerror or 'cannot be read'}"
        raise SettingsError(message) from None
