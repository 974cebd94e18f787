"""The reference pages of the settings and the command lines match the code."""

from __future__ import annotations

import pytest

from latentwire_bridge.settings import Settings as BridgeSettings
from latentwire_server.settings.settings import Settings as ServerSettings
from tools.settings_tables import REFERENCE, command_line_page, settings_page


@pytest.mark.parametrize(
    ("name", "page"), [("settings.md", settings_page), ("cli.md", command_line_page)]
)
def test_the_reference_pages_are_current(name, page):
    assert (REFERENCE / name).read_text() == page(), "run `make format`"


@pytest.mark.parametrize("settings", [ServerSettings, BridgeSettings])
def test_the_settings_page_has_every_setting(settings):
    page = settings_page()

    for name, info in settings.model_fields.items():
        assert f"`{settings.environment_name(name)}` | `{name}`" in page
        assert info.description
    for flag in ("--model", "--batching", "--public-url"):
        assert f"`{flag}`" in page
    assert "`--api-keys`" not in page
    assert "`--models`" not in page


def test_the_command_line_page_has_every_command():
    page = command_line_page()

    for command in ("generate", "models", "info", "list", "cancel", "inspect", "serve"):
        assert f"### latentwire {command}\n" in page
    assert "`-o, --output FILE`" in page
