"""The live bridge against its own description, with hundreds of calls made by schemathesis."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.support.bridge.described import DESCRIPTION
from tests.support.time_limits import scaled
from tests.support.tooling import ROOT

if TYPE_CHECKING:
    from pathlib import Path

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "wrong_data_rejection",
    "unsupported_method", "allow_header_conformance",
)  # fmt: skip
TIMEOUT_S = 300.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(360)]


async def schemathesis_on(bridge, folder: Path, location: str, *flags: str) -> tuple[int, str]:
    """Returns the exit code and the output; the requests are recorded in ``folder / "har"``."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", location, "--url", f"{bridge.url}/v1"),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--no-color"),
        *("--seed", "1", "--generation-deterministic"),
        *("--report", "har", "--report-har-path", str(folder / "har"), "--no-shrink", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.support.bridge.schemathesis_hooks",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
    )
    try:
        async with asyncio.timeout(scaled(TIMEOUT_S)):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, printed.decode()


def statuses_in(folder: Path) -> Counter[tuple[str, str, int]]:
    """Returns how often each path and body type was answered by each status."""
    entries = json.loads((folder / "har").read_text())["log"]["entries"]
    return Counter(
        (
            urlsplit(entry["request"]["url"]).path,
            entry["request"].get("postData", {}).get("mimeType", "").partition(";")[0],
            entry["response"]["status"],
        )
        for entry in entries
    )


async def test_the_bridge_answers_exactly_as_described(bridge, tmp_path):
    code, printed = await schemathesis_on(
        bridge, tmp_path, f"{bridge.url}/openapi.json", "--max-examples", "12"
    )

    assert code == 0, printed[-8_000:]
    statuses = statuses_in(tmp_path)
    assert not [status for _, _, status in statuses if status >= 500]
    for path in ("generations", "edits", "variations"):
        for kind in ("application/json", "multipart/form-data")[
            : 1 if path == "generations" else 2
        ]:
            assert statuses[f"/v1/images/{path}", kind, 200] >= 3, statuses
            assert statuses[f"/v1/images/{path}", kind, 400] >= 3, statuses


def _describe_created_as_text(description):
    description["components"]["schemas"]["ImagesAnswer"]["properties"]["created"] = {
        "type": "string"
    }


def _describe_no_refusal(description):
    del description["paths"]["/images/generations"]["post"]["responses"]["400"]


def _describe_n_as_at_most_3(description):
    properties = description["components"]["schemas"]["GenerationBody"]["properties"]
    properties["n"] = {"type": "integer", "minimum": 1, "maximum": 3}


def _describe_a_header_as_a_number(description):
    description["components"]["headers"]["openai-version"]["schema"] = {"type": "integer"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_describe_created_as_text, "Response violates schema"),
        (_describe_no_refusal, "Undocumented status code"),
        (_describe_n_as_at_most_3, "Schema-violating request accepted"),
        (_describe_a_header_as_a_number, "Response header does not conform to the schema"),
    ],
)
async def test_a_wrong_description_is_caught(bridge, tmp_path, change, complaint):
    description = json.loads(json.dumps(DESCRIPTION))
    change(description)
    file = tmp_path / "openapi.json"
    await asyncio.to_thread(file.write_text, json.dumps(description))

    code, printed = await schemathesis_on(
        bridge, tmp_path, str(file), "--max-examples", "5", "--include-path", "/images/generations"
    )

    assert code == 1, printed[-8_000:]
    assert complaint in printed
