"""The user's folders, as the XDG Base Directory Specification has them set."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings


class _Environment(BaseSettings):
    xdg_cache_home: str = ""


def user_cache() -> Path:
    """Returns the folder for files that can be made again."""
    return Path(_Environment().xdg_cache_home or Path.home() / ".cache") / "latentwire"
