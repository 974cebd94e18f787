"""A server that cannot start prints one line, without a traceback, and exits with code 2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.server.process import PROCESS_MARKS, START_TIMEOUT_S
from tests.support.time_limits import scaled
from tests.support.tooling import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = PROCESS_MARKS


def start(*flags: str, folder: Path, **environment: str) -> list[str]:
    """Starts a server that must refuse to start; returns the lines that it prints."""
    path = [str(ROOT), *(part for part in sys.path if part)]
    finished = subprocess.run(
        [sys.executable, "-m", "latentwire_server", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment},
        capture_output=True,
        text=True,
        timeout=scaled(START_TIMEOUT_S),
        check=False,
    )
    assert finished.returncode == 2, finished.stderr
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    return finished.stderr.splitlines()


@pytest.mark.parametrize(
    ("flags", "environment", "complaint"),
    [
        (["--port", "99999"], {}, "port='99999'"),
        (["--nonsense", "1"], {}, "--nonsense"),
        (["--host", "0.0.0.0"], {}, "--insecure"),
        (["--config", "bad.toml"], {}, "bad.toml"),
        ([], {"LATENTWIRE_MAX_ROWS": "many"}, "max_rows='many'"),
    ],
    ids=["bad port", "unknown flag", "public host", "bad file", "bad variable"],
)
def test_invalid_settings_stop_the_start(
    tmp_path: Path, flags: list[str], environment: dict, complaint: str
):
    (tmp_path / "bad.toml").write_text("[server\n")

    (line,) = start(*flags, folder=tmp_path, **environment)

    assert line.startswith("latentwire-server: ")
    assert complaint in line


def test_a_missing_model_folder_stops_the_start(tmp_path: Path):
    (line,) = start("--model", "./no-such-folder", folder=tmp_path)
    assert line.startswith("latentwire-server: model='./no-such-folder'")


def test_a_model_folder_without_a_model_stops_the_start(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    lines = start("--model", "./empty", "--port", "0", folder=tmp_path)
    assert [line for line in lines if "latentwire-server: " in line] == lines[-1:]
    assert "empty" in lines[-1]


def test_a_port_in_use_stops_the_start(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (line,) = start("--port", str(port), folder=tmp_path)
    assert line.startswith(f"latentwire-server: cannot listen: port={port} is taken")
