from __future__ import annotations

import json
import re
import sys
from importlib import metadata

import pytest

from tests.support.tooling import OLDEST_PYTHON, ROOT, run

PROGRAM = ROOT / "tests/support/streaming_call.py"


def pinned(constraints: str, name: str) -> str:
    found = re.search(rf"^{name}==(.+)$", (ROOT / constraints).read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("python", "constraints"),
    [(OLDEST_PYTHON, "constraints-oldest.txt"), (sys.executable, "constraints.txt")],
    ids=["oldest", "newest"],
)
def test_stubs_and_client_work_with_the_oldest_and_the_newest_versions(python, constraints):
    report = json.loads(run(python, PROGRAM, env={"PYTHONPATH": str(ROOT / "clients/python")}))

    assert report == {
        "grpcio": pinned(constraints, "grpcio"),
        "protobuf": pinned(constraints, "protobuf"),
        "events": ["accepted", "progress", "image", "image_chunk", "completed"],
        "seed_is_present": True,
        "client_got_the_file": [True],
    }


def test_the_oldest_tested_versions_are_the_lowest_required_ones():
    required = metadata.requires("latentwire")
    lower_ends = dict(line.split(">=") for line in required if "extra ==" not in line)

    for name, lower_end in lower_ends.items():
        tested = pinned("constraints-oldest.txt", name)
        assert tested.split(".")[: lower_end.count(".") + 1] == lower_end.split("."), name
