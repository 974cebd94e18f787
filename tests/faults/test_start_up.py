"""What an operator sees when the server cannot start: one line, exit code 2, no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.server.process import REPOSITORY
from tests.support.time_limits import scaled

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]


def start(*flags: str, folder: Path, **environment: str) -> list[str]:
    """Starts a server that must refuse to, and returns the lines that it says."""
    path = [str(REPOSITORY), *(part for part in sys.path if part)]
    ended = subprocess.run(
        [sys.executable, "-m", "latentwire_server", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment},
        capture_output=True,
        text=True,
        timeout=scaled(50),
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    return ended.stderr.splitlines()


def test_settings_that_are_no_good(tmp_path: Path):
    (tmp_path / "bad.toml").write_text("[server\n")
    cases = [
        ((("--port", "99999"), {}), "port='99999'"),
        ((("--nonsense", "1"), {}), "--nonsense"),
        ((("--host", "0.0.0.0"), {}), "--insecure"),
        ((("--config", "bad.toml"), {}), "bad.toml"),
        (((), {"LATENTWIRE_MAX_ROWS": "many"}), "max_rows='many'"),
    ]
    for (flags, environment), says in cases:
        (line,) = start(*flags, folder=tmp_path, **environment)
        assert line.startswith("latentwire-server: ")
        assert says in line


def test_a_model_folder_that_does_not_exist(tmp_path: Path):
    (line,) = start("--model", "./no-such-folder", folder=tmp_path)
    assert line.startswith("latentwire-server: model='./no-such-folder'")


def test_a_model_folder_that_holds_no_model(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    lines = start("--model", "./empty", "--port", "0", folder=tmp_path)
    assert [line for line in lines if "latentwire-server: " in line] == lines[-1:]
    assert "empty" in lines[-1]


def test_a_port_that_is_taken(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (line,) = start("--port", str(port), folder=tmp_path)
    assert line.startswith(f"latentwire-server: cannot listen: port={port} is taken")
