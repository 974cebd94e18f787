"""The live bridge against its own description, called by schemathesis in hundreds of ways."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.bridge.described import DESCRIPTION
from tests.support.time_limits import scaled

REPOSITORY = Path(__file__).parents[3]
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "negative_data_rejection",
    "unsupported_method", "allow_header_conformance",
)  # fmt: skip
TIMEOUT_S = 300.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(360)]


async def schemathesis_on(bridge, folder: Path, location: str, *flags: str) -> tuple[int, str]:
    """Returns the exit code and what it printed; what was sent is in ``folder / "har"``."""
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
            "PYTHONPATH": str(REPOSITORY),
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


async def test_the_bridge_does_what_it_says_and_nothing_else(bridge, tmp_path):
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


def _created_is_text(told):
    told["components"]["schemas"]["ImagesAnswer"]["properties"]["created"] = {"type": "string"}


def _nothing_is_refused(told):
    del told["paths"]["/images/generations"]["post"]["responses"]["400"]


def _n_is_at_most_3(told):
    properties = told["paths"]["/images/generations"]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]["properties"]
    properties["n"] = {"type": "integer", "minimum": 1, "maximum": 3}


def _has_another_header(told):
    told["components"]["headers"]["openai-version"]["schema"] = {"type": "integer"}


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (_created_is_text, "Response violates schema"),
        (_nothing_is_refused, "Undocumented status code"),
        (_n_is_at_most_3, "Schema-violating request accepted"),
        (_has_another_header, "Response header does not conform to the schema"),
    ],
)
async def test_a_description_that_lies_is_caught(bridge, tmp_path, lie, found):
    told = json.loads(json.dumps(DESCRIPTION))
    lie(told)
    file = tmp_path / "openapi.json"
    await asyncio.to_thread(file.write_text, json.dumps(told))

    code, printed = await schemathesis_on(
        bridge, tmp_path, str(file), "--max-examples", "5", "--include-path", "/images/generations"
    )

    assert code == 1, printed[-8_000:]
    assert found in printed
