"""The keys that callers must show, from the settings and from the files that these name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latentwire_server.settings.files import SettingsError, read_lines

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import SecretStr

    from latentwire_server.settings.settings import Settings


def read_api_keys(settings: Settings) -> tuple[str, ...]:
    """Returns every caller's key.

    Raises:
        SettingsError: The file cannot be read or holds no key.
    """
    return _read_keys(settings.api_keys, "api_keys_file", settings.api_keys_file)


def read_admin_keys(settings: Settings) -> tuple[str, ...]:
    """Returns every key for ``ModelAdmin``.

    Raises:
        SettingsError: The file cannot be read or holds no key.
    """
    return _read_keys(settings.admin_keys, "admin_keys_file", settings.admin_keys_file)


def _read_keys(keys: tuple[SecretStr, ...], field: str, path: Path | None) -> tuple[str, ...]:
    from_file = [] if path is None else read_lines(field, path)
    if path is not None and not from_file:
        message = f"{field}={str(path)!r}: holds no key"
        raise SettingsError(message)
    return (*(key.get_secret_value() for key in keys), *from_file)
