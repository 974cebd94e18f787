"""A worker that dies fails only the test it was running, and the run goes on to its end."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

from tests.support.time_limits import scaled
from tests.support.tooling import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

DIES = """
import os, pytest
@pytest.mark.parametrize("number", range(4))
def test_some(number):
    if number == 1:
        {end}
"""
HANGS = "import ctypes; ctypes.PyDLL(None).sleep(600)"
"""Holds the interpreter's lock, as a library of compiled code can, so that no signal is handled."""
PASSES = """
import pytest
@pytest.mark.parametrize("number", range(4))
def test_some(number):
    pass
"""
CONFTEST = """
from tests.support.crash_safe_scheduling import CrashSafeScheduling
def pytest_xdist_make_scheduler(config, log):
    return CrashSafeScheduling(config, log)
"""


def run(folder: Path, *options: str, **files: str) -> dict[str, str]:
    """Runs a suite in two workers; returns each test's outcome."""
    (folder / "conftest.py").write_text(CONFTEST)
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    report = folder / "report.xml"
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "xdist.plugin", "-p", "no:cacheprovider", "-n", "2",
         "--dist", "loadfile", "--rootdir", folder, "--junit-xml", report, *options, folder],
        cwd=ROOT,
        # Other plugins take seconds to start, in each worker.
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=scaled(100),
        check=False,
    )  # fmt: skip
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert "INTERNALERROR" not in finished.stdout, finished.stdout
    outcomes: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - written by pytest
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        failed = case.find("failure") is not None or case.find("error") is not None
        outcomes[name] = "failed" if failed else "passed"
    return outcomes


@pytest.mark.parametrize("end", ["os.abort()", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_workers_that_die_early_fail_one_test_each(tmp_path: Path, end: str):
    dies = DIES.format(end=end)

    outcomes = run(tmp_path, a=dies, b=dies, c=PASSES, d=PASSES)

    failed = sorted(name for name, outcome in outcomes.items() if outcome == "failed")
    assert [name.partition("::")[0] for name in failed] == ["test_a", "test_b"]
    assert len(outcomes) - len(failed) >= 4 * 4 - 2


def test_a_worker_that_dies_at_the_end_fails_its_test(tmp_path: Path):
    outcomes = run(tmp_path, a=PASSES, b=DIES.format(end="os.abort()"))

    assert list(outcomes.values()).count("failed") == 1


def test_a_worker_that_hangs_in_compiled_code_dies_and_is_replaced(tmp_path: Path):
    options = ("-o", "faulthandler_timeout=2", "-o", "faulthandler_exit_on_timeout=true")

    outcomes = run(tmp_path, *options, a=DIES.format(end=HANGS), b=PASSES, c=PASSES)

    assert list(outcomes.values()).count("failed") == 1
    assert len(outcomes) >= 12
