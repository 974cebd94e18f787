"""The project's folders and the tools that `make` sets up for its tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.time_limits import scaled

ROOT = Path(__file__).parents[2]
PROTO = Path("latentwire/v1/image_generation.proto")
OLDEST_PYTHON = ROOT / ".venv-oldest/bin/python"
PROTOS_PYTHON = ROOT / ".venv-protos/bin/python"
LEGACY_PYTHON = ROOT / ".venv-openai-0.28/bin/python"
BUF = ROOT / "node_modules/.bin/buf"


def run(*command: object, timeout_s: float = 50, **options: object) -> str:
    """Runs a tool in the project's folder; if it fails, the test fails with its output."""
    arguments = [str(part) for part in command]
    assert Path(arguments[0]).exists(), f"{arguments[0]} is missing: run `make setup-tests`"
    done = subprocess.run(
        arguments,
        check=False,
        capture_output=True,
        text=True,
        timeout=scaled(timeout_s),
        **{"cwd": ROOT, **options},
    )
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
