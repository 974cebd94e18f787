"""Which modules may import which: the packages, the client's base install, the tests."""

from __future__ import annotations

import ast
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


def test_the_client_and_its_cli_import_nothing_heavy():
    assert json.loads(run(sys.executable, "-c", PROGRAM)) == []


def test_the_client_and_its_cli_need_only_the_base_install():
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


def test_imports_follow_the_layers():
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
def test_an_import_against_the_arrows_is_caught(tmp_path, module, line):
    for folder in ("clients/python", "rest_bridge", "server"):
        code_only = shutil.ignore_patterns("embedded", "*cache*")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=code_only)
    changed = tmp_path / module
    changed.write_text(changed.read_text() + f"\n{line}\n")
    folders = [str(tmp_path / folder) for folder in ("clients/python", "rest_bridge", "server")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}

    with pytest.raises(AssertionError, match="BROKEN"):
        run(LINT_IMPORTS, "--no-cache", "--config", ROOT / "pyproject.toml", env=environment)


def imports_of_test_modules(folder: Path) -> list[str]:
    """Returns the imports of test modules and of conftests in the Python files of a folder."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.ImportFrom(module=module, names=names):
                    imported = [module or "", *(f"{module}.{name.name}" for name in names)]
                case ast.Import(names=names):
                    imported = [name.name for name in names]
                case _:
                    continue
            for name in imported:
                module_name = name.rpartition(".")[2]
                if module_name.startswith("test_") or module_name == "conftest":
                    found.append(f"{path.relative_to(folder)} imports {name}")
    return found


def test_no_test_module_is_imported_by_another():
    assert imports_of_test_modules(ROOT / "tests") == [], "move what is shared to tests/support"


@pytest.mark.parametrize(
    "line",
    [
        "from tests.bridge.test_settings import helper",
        "from tests.bridge import test_settings",
        "import tests.bridge.test_settings",
        "from tests.bridge.conftest import server",
        "from . import test_settings",
    ],
)
def test_an_import_of_a_test_module_is_caught(tmp_path, line):
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {line}\n")

    assert len(imports_of_test_modules(tmp_path)) == 1
