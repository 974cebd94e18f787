"""The sources of the bridge's settings, and the errors about invalid ones."""

from __future__ import annotations

import pytest

from latentwire._services.settings import SettingsError
from latentwire_bridge.settings import Settings


def test_a_flag_overrides_the_environment_which_overrides_the_file(tmp_path, monkeypatch):
    config = tmp_path / "latentwire.toml"
    config.write_text('[bridge]\nport = 1\nserver = "file:1"\nmax_files = 7\n[server]\nport = 9\n')
    monkeypatch.setenv("LATENTWIRE_BRIDGE_PORT", "2")
    monkeypatch.setenv("LATENTWIRE_BRIDGE_SERVER", "environment:1")

    settings = Settings.load({"port": 3}, config_file=config)

    assert (settings.port, settings.server, settings.max_files) == (3, "environment:1", 7)


@pytest.mark.parametrize("content", ["", "[[models]]\nsource = 'embedded'\n", "[server]\n"])
def test_a_file_without_a_bridge_table_is_accepted(tmp_path, content):
    config = tmp_path / "latentwire.toml"
    config.write_text(content)

    assert Settings.load({}, config_file=config).port == 9225


def test_a_bridge_entry_that_is_not_a_table_is_refused(tmp_path):
    config = tmp_path / "latentwire.toml"
    config.write_text("bridge = 1\n")

    with pytest.raises(SettingsError, match=r"bridge=1: needed: a table, \[bridge\]"):
        Settings.load({}, config_file=config)


def test_the_defaults_are_the_documented_ones():
    settings = Settings()

    assert (settings.host, settings.port, settings.server) == ("127.0.0.1", 9225, "localhost:50051")
    assert (settings.max_files, settings.max_files_bytes, settings.files_ttl_s) == (
        1000,
        2**30,
        3600,
    )
    assert set(settings.aliases.values()) == {""}


def test_an_unknown_setting_is_refused(tmp_path):
    config = tmp_path / "latentwire.toml"
    config.write_text("[bridge]\nprot = 1\n")

    with pytest.raises(SettingsError, match="prot: no such setting"):
        Settings.load({}, config_file=config)


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--port", "70000"], {}, "port='70000'"),
        (["--port", "x"], {}, "port='x'"),
        (["--frobnicate", "1"], {}, "--frobnicate"),
        ([], {"LATENTWIRE_BRIDGE_BODY_TIMEOUT_S": "-1"}, "body_timeout_s='-1'"),
        (["--public-url", "images.example"], {}, "public_url='images.example'"),
        (["--config", "/no/such/file.toml"], {}, "/no/such/file.toml"),
    ],
)
def test_invalid_settings_exit_with_one_line_and_code_2(
    arguments, environment, named, capsys, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as ended:
        Settings.parse(arguments)

    assert ended.value.code == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert named in errors
    assert errors.count("\n") == 1
    assert errors.startswith("latentwire-bridge: ")
