from __future__ import annotations

import os

from tests.support.tooling import PROTO, PROTOS_PYTHON, ROOT, run

COMMITTED = ROOT / "clients/python"
OUTPUTS = ("python_out", "pyi_out", "grpc_python_out", "mypy_grpc_out")


def test_the_committed_stubs_are_current(tmp_path):
    environment = {**os.environ, "PATH": f"{PROTOS_PYTHON.parent}:{os.environ['PATH']}"}
    outputs = [f"--{name}={tmp_path}" for name in OUTPUTS]

    run(PROTOS_PYTHON, "-m", "grpc_tools.protoc", "-I", "protos", *outputs, PROTO, env=environment)

    folder = PROTO.parent
    generated = {path.name: path.read_text() for path in (tmp_path / folder).iterdir()}
    committed = {path.name: path.read_text() for path in (COMMITTED / folder).glob("*_pb2*.py*")}
    assert len(generated) == len(OUTPUTS)
    assert committed == generated, "run `make protos`"
