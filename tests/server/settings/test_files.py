"""The folder for files that can be made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentwire_server.settings.files import user_cache


def test_the_cache_folder_follows_xdg_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "latentwire"


@pytest.mark.parametrize("is_set", [True, False])
def test_otherwise_the_cache_is_in_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, *, is_set: bool
):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if is_set:
        # An empty variable counts as unset (XDG Base Directory Specification).
        monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert user_cache() == Path.home() / ".cache" / "latentwire"
