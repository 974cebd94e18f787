"""Every command and program that the README and the guides print, run on the embedded model."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.support.bridge.client_programs import NODE
from tests.support.live import (
    CALL_TIMEOUT_S,
    LIVE_MARKS,
    README,
    blocks,
    call,
    commands,
    curl,
    messages,
)
from tests.support.tooling import LEGACY_PYTHON, ROOT, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.live import Live

GUIDES = ROOT / "docs/guides"
SQUARE = (256, 256)
LARGE = (512, 512)
pytestmark = LIVE_MARKS


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page whose examples run, and the images that they write."""

    path: Path
    images: dict[str, tuple[int, int]]
    commands: set[str] = field(default_factory=set)
    """The `latentwire` commands on it, so that a missing one is noticed."""
    num_programs: int = 0


PAGES = [
    Page(
        path=README,
        images={"circle.png": SQUARE, "star.png": SQUARE, "ring.png": LARGE},
        commands={"generate"},
        num_programs=2,
    ),
    Page(
        path=GUIDES / "text_to_image.md",
        images={
            "circle.png": SQUARE, "again.png": SQUARE, "square-0.png": SQUARE,
            "square-1.png": SQUARE, "heart.jpg": SQUARE, "star-7.png": SQUARE,
            "star-8.png": SQUARE, "ring.png": SQUARE, "answered.png": LARGE,
        },
        commands={"generate", "inspect", "models", "info"},
        num_programs=2,
    ),
    Page(
        path=GUIDES / "image_to_image.md",
        images={
            "circle.png": SQUARE, "star.png": SQUARE, "inpainted.png": SQUARE,
            "from_photo.png": SQUARE, "masked.png": SQUARE, "answered.png": SQUARE,
        },
        commands={"generate"},
        num_programs=1,
    ),
    Page(
        path=GUIDES / "large_images.md",
        images={"large.png": (384, 384), "at_once.png": (384, 384)},
        commands={"generate"},
    ),
    Page(
        path=GUIDES / "previews.md",
        images={"heart.png": SQUARE},
        commands={"generate"},
        num_programs=1,
    ),
    Page(
        path=GUIDES / "cancel_and_deadlines.md",
        images={"in_time.png": SQUARE, "diamond.png": SQUARE},
        commands={"list", "generate"},
        num_programs=2,
    ),
    Page(
        path=GUIDES / "openai_clients.md",
        images={"ring.png": LARGE, "heart.png": SQUARE, "iron_man.png": LARGE},
        num_programs=4,
    ),
]  # fmt: skip
NOT_RUN = {
    "lora.md": "adapters that are not shipped",
    "prompts.md": "settings only",
    "safety.md": "settings only",
    "sdxl_refiner.md": "weights that are not shipped",
    "several_models.md": "models that are not shipped",
}


def examples(page: Path) -> list[tuple[str, str]]:
    """Returns the runnable blocks of a page with their languages, in order."""
    fence = re.compile(r"^```(sh|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return fence.findall(page.read_text())


def run_program(source: str, live: Live, folder: Path, environment: dict[str, str]) -> None:
    is_legacy = "openai.Image.create" in source
    python = LEGACY_PYTHON if is_legacy else sys.executable
    run(python, "-c", live.localized(source), cwd=folder, env=environment, timeout_s=CALL_TIMEOUT_S)


def run_commands(text: str, live: Live, folder: Path, environment: dict[str, str]) -> list[str]:
    """Runs the commands of a block except `serve`; returns the `latentwire` ones that ran.

    The image of a `curl` command's answer is written to `answered.png`.
    """
    ran = []
    for words in commands(text, "latentwire"):
        if words[0] != "serve":
            run(sys.executable, "-m", "latentwire", *words, cwd=folder, env=environment,
                timeout_s=CALL_TIMEOUT_S)  # fmt: skip
            ran.append(words[0])
    for words in commands(text, "grpcurl"):
        assert "completed" in messages(call(words, live))[-1]
    for words in commands(text, "curl"):
        (image,) = json.loads(curl(words, live, folder=folder))["data"]
        assert image["url"].startswith(f"http://{live.bridge}/")
        with Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) as answered:
            answered.save(folder / "answered.png")
    return ran


def write_source_files(folder: Path) -> Image.Image:
    """Writes the source files that pages use: a photo, and a mask of its right half."""
    photo = Image.radial_gradient("L").convert("RGB")
    photo.save(folder / "photo.png")
    mask = Image.new("RGBA", photo.size, "black")
    mask.paste((255, 255, 255, 0), (128, 0, 256, 256))
    mask.save(folder / "mask.png")
    return photo


def left_half(image: Image.Image) -> bytes:
    return image.convert("RGB").crop((0, 0, 128, 256)).tobytes()


def test_every_guide_is_run_or_excluded_with_a_reason():
    guides = {path.name for path in GUIDES.glob("*.md")}

    assert guides == {page.path.name for page in PAGES if page.path != README} | set(NOT_RUN)
    for name in NOT_RUN:
        assert blocks(GUIDES / name, "python") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)
def test_the_examples_of_a_page_work(live, tmp_path, page):
    environment = {**os.environ, "LATENTWIRE_SERVER": live.server}
    photo = write_source_files(tmp_path)
    ran, programs = [], 0

    for language, text in examples(page.path):
        if language == "python":
            run_program(text, live, tmp_path, environment)
            programs += 1
        else:
            ran += run_commands(text, live, tmp_path, environment)

    assert set(ran) == page.commands
    assert programs == page.num_programs
    for name, size in page.images.items():
        with Image.open(tmp_path / name) as image:
            assert image.size == size
    if page.path.name == "text_to_image.md":
        assert (tmp_path / "again.png").read_bytes() == (tmp_path / "circle.png").read_bytes()
    if page.path.name == "image_to_image.md":
        # The mask of the curl line keeps the left half.
        with Image.open(tmp_path / "answered.png") as edited:
            assert left_half(edited) == left_half(photo)
            assert edited.convert("RGB").tobytes() != photo.tobytes()


@pytest.mark.parametrize(
    ("program", "runtime"),
    [
        ("modern.py", sys.executable),
        ("edit.py", sys.executable),
        ("legacy.py", LEGACY_PYTHON),
        ("stream.mjs", NODE.runtime),
    ],
)
def test_the_programs_of_clients_openai_work(live, tmp_path, program, runtime):
    environment = {**os.environ, "LATENTWIRE_BRIDGE": f"http://{live.bridge}", "NO_PROXY": "*"}
    if runtime == NODE.runtime:
        NODE.check()

    output = run(runtime, ROOT / "clients/openai" / program, cwd=tmp_path, env=environment,
               timeout_s=CALL_TIMEOUT_S)  # fmt: skip

    # A stream prints the paths of its partial images first.
    with Image.open(tmp_path / output.split()[-1]) as image:
        assert image.size == LARGE


def test_make_serve_prints_commands_to_try(live):
    output = live.output.read_text()

    for part in ("latentwire generate", "grpcurl -plaintext", "curl -s", "openai.Image.create"):
        assert part in output
    (printed,) = commands(output.replace("\n\n", "\n"), "grpcurl")
    assert live.server in shlex.join(printed)


def test_make_serve_prints_its_progress_while_it_loads(live):
    output = live.output.read_text()

    assert "Starting the server, usually " in output
    assert "Loading the embedded model, usually " in output
    assert "/readyz" not in output
