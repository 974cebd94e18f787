"""Files that settings name: keys, word lists, certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentwire._services.settings import SettingsError, read_file, read_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SettingsError", "read_file", "read_lines"]


def read_lines(field: str, path: Path) -> list[str]:
    """Returns the lines of a file without comments and empty lines.

    Raises:
        SettingsError: The file cannot be read or is not UTF-8.
    """
    lines = read_text(field, path).splitlines()
    return [entry for line in lines if (entry := line.split("#", 1)[0].strip())]
