from __future__ import annotations

import json

import pytest

from tests.support.tooling import BUF, PROTO, ROOT, run


@pytest.fixture
def copy(tmp_path):
    """A copy of the contract that a test may change."""
    for name in ("buf.yaml", str(PROTO)):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((ROOT / "protos" / name).read_text())
    return tmp_path


def change(copy, old, new):
    text = (copy / PROTO).read_text()
    assert old in text
    (copy / PROTO).write_text(text.replace(old, new, 1))


def test_the_contract_is_lint_clean():
    assert run(BUF, "lint", "protos") == ""


def rules(*flags):
    listed = run(BUF, "config", "ls-lint-rules", "--format", "json", *flags, cwd=ROOT / "protos")
    return [json.loads(line) for line in listed.splitlines()]


def test_only_the_service_suffix_is_exempt_from_the_lint_rules():
    expected = {r["id"] for r in rules() if {"STANDARD", "COMMENTS"} & set(r["categories"])}

    assert {rule["id"] for rule in rules("--configured-only")} == expected - {"SERVICE_SUFFIX"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  // Longest prompt, and longest negative prompt, in bytes of UTF-8.\n", ""),
        ("// A sampler of a model.\n", ""),
        ("int32 num_images = 7;", "int32 numImages = 7;"),
    ],
    ids=["field without comment", "message without comment", "name in camel case"],
)
def test_a_violation_of_the_lint_rules_is_caught(copy, old, new):
    change(copy, old, new)

    with pytest.raises(AssertionError, match="image_generation"):
        run(BUF, "lint", copy)


@pytest.mark.parametrize(
    ("old", "new"),
    [("int32 num_images = 7;", "int64 num_images = 7;"), ("  string user = 20;\n", "")],
    ids=["other type", "removed field"],
)
def test_a_breaking_change_is_caught(copy, old, new):
    assert run(BUF, "breaking", copy, "--against", "protos") == ""
    change(copy, old, new)

    with pytest.raises(AssertionError, match=r"Previously present field|changed type"):
        run(BUF, "breaking", copy, "--against", "protos")
