"""The pages: their links, lengths, examples and generated parts."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib

import pytest

import latentwire
from tests.support.live import blocks
from tests.support.tooling import ROOT, run
from tools.references import errors, grpc

PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("clients/**/*.md")]
    if "node_modules" not in page.parts
)
PACKAGES = (
    "server/latentwire_server",
    "rest_bridge/latentwire_bridge",
    "clients/python/latentwire",
)
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page):
    """Returns the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page):
    found = []
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        target, _, anchor = link.partition("#")
        place = page.parent / target if target else page
        is_there = "://" in link or (
            place.exists() and (not anchor or place.suffix != ".md" or anchor in anchors(place))
        )
        if not is_there:
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_or_anchor_is_caught(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b` c\n[1](#a-b-c) [2](#a-b) [3](page.md#a-b-c) [4](page.md#d) [5](no.md)")

    assert broken_links(page) == ["#a-b", "page.md#d", "no.md"]


def test_every_target_of_make_exists():
    text = "\n".join(page.read_text() for page in PAGES)
    mentioned = set(re.findall(r"(?:^|`)make ([a-z][a-z-]+)", text, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert {"serve", "test", "docs"} <= mentioned
    assert mentioned <= targets


def test_toml_and_json_examples_can_be_parsed():
    for page in PAGES:
        for text in blocks(page, "toml"):
            assert tomllib.loads(text), page
        for text in blocks(page, "json"):
            assert json.loads(text), page


def test_flags_that_pages_name_exist():
    flag = re.compile(r"--[a-z][a-z0-9-]+")
    known = {
        word
        for page in ("cli.md", "settings.md")
        for word in flag.findall((ROOT / "docs/reference" / page).read_text())
    }
    named = {
        word
        for page in (ROOT / "docs").rglob("*.md")
        if page.parent.name in ("docs", "guides", "operating", "reference")
        for word in flag.findall(page.read_text())
    }

    # Settings that are true or false have a second flag; the rest are pip's.
    opposites = {word.replace("--", "--no-", 1) for word in known}
    assert named - known - opposites <= {"--no-deps", "--extra-index-url"}


def test_reasons_that_pages_name_exist():
    constant = re.compile(r"`([A-Z]+(?:_[A-Z]+)+)`")
    folder = ROOT / "docs/reference"
    known = {
        word
        for page in ("errors.md", "grpc.md", "settings.md", "cli.md")
        for word in re.findall(r"[A-Z]+(?:_[A-Z]+)+", (folder / page).read_text())
    }
    named = {
        word
        for room in ("guides", "operating")
        for page in (ROOT / "docs" / room).glob("*.md")
        for word in constant.findall(page.read_text())
    }

    assert named - known <= {"NOT_SERVING"}


@pytest.mark.parametrize(
    ("page", "most"), [("README.md", 150), ("docs/architecture.md", 150), ("CONTRIBUTING.md", 60)]
)
def test_the_main_pages_are_short(page, most):
    assert len((ROOT / page).read_text().splitlines()) <= most


def test_the_glossary_has_at_most_twenty_sorted_words():
    words = re.findall(
        r"^\| \*\*(.+?)\*\* \|", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE
    )

    assert 0 < len(words) <= 20
    assert words == sorted(words)


def test_the_architecture_and_the_tree_agree():
    text = (ROOT / "docs/architecture.md").read_text()
    roots = [ROOT, ROOT / "server", ROOT / "rest_bridge", *(ROOT / name for name in PACKAGES)]
    named = set(re.findall(r"[\w/]+/(?:\w+\.(?:py|proto))?(?![\w/])|[\w/]+\.py", text))

    assert [path for path in named if not any((root / path).exists() for root in roots)] == []
    for package in PACKAGES[:2]:
        for folder in (ROOT / package).iterdir():
            if (folder / "__init__.py").exists():
                assert f"`{folder.name}/`" in text, f"{folder.name} of {package}"


@pytest.mark.parametrize(
    ("name", "page"), [("grpc.md", grpc.page), ("errors.md", errors.page)], ids=["grpc", "errors"]
)
def test_the_generated_references_are_current(name, page):
    assert (ROOT / "docs/reference" / name).read_text() == page(), "run `make format`"


def test_the_grpc_reference_has_every_message_and_field():
    text = grpc.page()
    file = latentwire.v1.image_generation_pb2.DESCRIPTOR

    for message in file.message_types_by_name.values():
        if not message.GetOptions().map_entry:
            assert f"### {message.name}\n" in text
        assert all(f"`{field.name}`" in text for field in message.fields)
    for service in file.services_by_name.values():
        assert all(f"| `{method.name}` |" in text for method in service.methods)
    for enum in file.enum_types_by_name.values():
        assert all(f"| `{value.name}` |" in text for value in enum.values)


def test_the_python_reference_has_every_public_name():
    text = (ROOT / "docs/reference/python.md").read_text()
    shown = set(re.findall(r"^::: latentwire\.(\w+)$", text, re.MULTILINE))

    assert shown == set(latentwire.__all__) - {"Event"}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_site_builds_strictly(tmp_path):
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}

    run(sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path,
        cwd=ROOT, env=environment, timeout_s=120)  # fmt: skip

    assert "class" in (tmp_path / "reference/python.html").read_text()
