"""The server's command line: one flag for each setting, and none for secrets."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from latentwire_server.engine.settings import Batching
from latentwire_server.settings.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _folder_without_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api-keys", "k"], "use LATENTWIRE_API_KEYS, --api-keys-file or latentwire.toml"),
        (["--admin-keys=k"], "use LATENTWIRE_ADMIN_KEYS, --admin-keys-file or latentwire.toml"),
        (["--models", "[]"], "use LATENTWIRE_MODELS or latentwire.toml"),
    ],
)
def test_settings_without_a_flag_are_refused_with_the_alternatives(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        Settings.parse(arguments)
    assert ended.value.code == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.startswith(f"latentwire-server: {arguments[0].partition('=')[0]}: not taken from")
    assert message in errors


def test_a_boolean_setting_has_two_flags(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LATENTWIRE_SAFETY_CHECKER", "true")
    monkeypatch.setenv("LATENTWIRE_INSECURE", "false")
    settings = Settings.parse(["--no-safety-checker", "--insecure"])
    assert (settings.safety_checker, settings.insecure) == (False, True)


def test_string_values_are_not_interpreted():
    given = ["--revision", "null", "--model-id", "7", "--variant=[a,b]"]
    settings = Settings.parse(["--model", "a/b", *given])
    assert (settings.revision, settings.model_id, settings.variant) == ("null", "7", "[a,b]")


def test_a_list_is_given_in_one_flag_or_in_several():
    assert Settings.parse(["--loras", "a/b, c/d"]).loras == ("a/b", "c/d")
    assert Settings.parse(["--loras", "a/b", "--loras", "c/d"]).loras[-1] == "c/d"


@pytest.mark.parametrize("value", ["DEBUG", "debug"])
def test_choices_are_taken_in_any_case(value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LATENTWIRE_LOG_LEVEL", value)
    settings = Settings.parse(["--batching", "Reproducible", "--dtype", "Float32"])
    assert (settings.log_level, settings.dtype) == ("debug", "float32")
    assert settings.batching is Batching.REPRODUCIBLE


def test_help_lists_the_settings_without_importing_torch():
    code = (
        "import sys; from latentwire_server.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    text = " ".join(ended.stdout.split())
    assert "--max-rows" in text
    assert "(default: 50051)" in text
    assert "--api-keys-file" in text
    assert "--api-keys " not in text
