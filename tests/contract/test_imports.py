from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.tooling import OLDEST_PYTHON, ROOT, run

LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"
HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL", "aiohttp", "pydantic")
PROGRAM = f"""
import json, sys
import latentwire
from latentwire._cli import main
print(json.dumps(sorted({{*{HEAVY!r}, "latentwire_server"}} & set(sys.modules))))
"""


def test_importing_the_client_and_its_cli_imports_nothing_heavy():
    assert json.loads(run(sys.executable, "-c", PROGRAM)) == []


def test_the_client_and_its_cli_need_the_base_install_only():
    environment = {"PYTHONPATH": str(ROOT / "clients/python")}

    helped = run(OLDEST_PYTHON, "-m", "latentwire", "--help", env=environment)

    for command in ("generate", "models", "info", "cancel", "inspect", "serve"):
        assert command in helped


def test_no_folder_has_more_than_fourteen_modules():
    roots = ("benchmarks", "clients", "rest_bridge", "server", "tests", "tools")
    modules = Counter(
        str(path.parent.relative_to(ROOT))
        for root in roots
        for path in (ROOT / root).rglob("*.py")
        if path.stem != "__init__"
        and not path.stem.endswith(("_pb2", "_pb2_grpc"))
        and "node_modules" not in path.parts
    )

    assert {"benchmarks", "tools", "server/latentwire_server"} <= modules.keys()
    assert {folder: count for folder, count in modules.items() if count > 14} == {}


def test_imports_follow_the_arrows():
    run(LINT_IMPORTS, "--no-cache")


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("server/latentwire_server/engine/policy/policy.py", "import torch"),
        ("server/latentwire_server/engine/device/loop.py", "import grpc"),
        ("server/latentwire_server/engine/request.py", "import latentwire_server.rpc.servicer"),
        ("clients/python/latentwire/_client.py", "import latentwire_server.settings.settings"),
    ],
)
def test_an_import_against_the_arrows_is_found(tmp_path, module, line):
    for folder in ("clients/python", "rest_bridge", "server"):
        code_only = shutil.ignore_patterns("embedded", "*cache*")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=code_only)
    spoilt = tmp_path / module
    spoilt.write_text(spoilt.read_text() + f"\n{line}\n")
    folders = [str(tmp_path / folder) for folder in ("clients/python", "rest_bridge", "server")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}

    with pytest.raises(AssertionError, match="BROKEN"):
        run(LINT_IMPORTS, "--no-cache", "--config", ROOT / "pyproject.toml", env=environment)
