"""The README and what it points to: every command and program as printed, on the embedded model."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import sys

import pytest
from PIL import Image

from tests.support.bridge.client_programs import NODE
from tests.support.live import CALL_TIMEOUT_S, README, blocks, call, commands, curl, messages
from tests.support.tooling import LEGACY_PYTHON, ROOT, run

PAGES = sorted(
    page for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("clients/**/*.md")]
    if "node_modules" not in page.parts
)  # fmt: skip
SHELL = "\n".join(blocks(README, "sh"))
PYTHON = blocks(README, "python")
live_only = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    local = [target.split("#")[0] for target in targets if "://" not in target]

    assert [target for target in local if target and not (page.parent / target).exists()] == []


def test_every_target_of_make_exists():
    text = "\n".join(page.read_text() for page in PAGES)
    asked = set(re.findall(r"(?:^|`)make ([a-z][a-z-]+)", text, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert {"serve", "test"} <= asked
    assert asked <= targets


class TestLive:
    pytestmark = live_only

    def test_the_commands_of_latentwire_work(self, live, tmp_path):
        printed = [words for words in commands(SHELL, "latentwire") if words[0] != "serve"]
        environment = {**os.environ, "LATENTWIRE_SERVER": live.server}

        for words in printed:
            run(sys.executable, "-m", "latentwire", *words, cwd=tmp_path, env=environment,
                timeout_s=CALL_TIMEOUT_S)  # fmt: skip

        assert {words[0] for words in printed} == {"generate", "inspect", "models", "info"}
        assert (tmp_path / "again.png").read_bytes() == (tmp_path / "circle.png").read_bytes()

    def test_the_grpcurl_line_draws(self, live):
        (printed,) = commands(SHELL, "grpcurl")

        assert "completed" in messages(call(printed, live))[-1]

    def test_the_curl_line_draws(self, live, tmp_path):
        (printed,) = commands(SHELL, "curl")

        (image,) = json.loads(curl(printed, live, folder=tmp_path))["data"]
        assert image["b64_json"]
        assert image["url"].startswith(f"http://{live.bridge}/")

    def test_the_curl_line_edits(self, live, tmp_path):
        (printed,) = commands("\n".join(blocks(ROOT / "docs/openai.md", "sh")), "curl")
        photo = Image.radial_gradient("L").convert("RGB")
        photo.save(tmp_path / "photo.png")
        mask = Image.new("RGBA", photo.size, "black")
        mask.paste((0, 0, 0, 0), (128, 0, 256, 256))
        mask.save(tmp_path / "mask.png")

        (image,) = json.loads(curl(printed, live, folder=tmp_path))["data"]
        with Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) as edited:
            assert edited.crop((0, 0, 128, 256)).tobytes() == photo.crop((0, 0, 128, 256)).tobytes()
            assert edited.crop((128, 0, 256, 256)) != photo.crop((128, 0, 256, 256))

    @pytest.mark.parametrize(
        ("program", "python", "sizes"),
        [
            (PYTHON[0], sys.executable, {"star.png": (256, 256), "heart.png": (256, 256)}),
            (PYTHON[1], sys.executable, {"ring.png": (512, 512)}),
            (PYTHON[2], LEGACY_PYTHON, {"iron_man.png": (512, 512)}),
        ],
        ids=["latentwire", "openai", "openai 0.28"],
    )
    def test_the_printed_programs_draw(self, live, tmp_path, program, python, sizes):
        run(python, "-c", live.here(program), cwd=tmp_path, timeout_s=CALL_TIMEOUT_S)

        for name, size in sizes.items():
            with Image.open(tmp_path / name) as picture:
                assert picture.size == size

    @pytest.mark.parametrize(
        ("program", "runtime"),
        [
            ("modern.py", sys.executable),
            ("edit.py", sys.executable),
            ("legacy.py", LEGACY_PYTHON),
            ("stream.mjs", NODE.runtime),
        ],
    )
    def test_the_openai_examples_draw(self, live, tmp_path, program, runtime):
        environment = {
            **os.environ,
            "LATENTWIRE_BRIDGE": f"http://{live.bridge}",
            "NO_PROXY": "*",
        }
        if runtime == NODE.runtime:
            NODE.check()

        said = run(runtime, ROOT / "clients/openai" / program, cwd=tmp_path, env=environment,
                   timeout_s=CALL_TIMEOUT_S)  # fmt: skip

        # A stream tells of partial images before.
        with Image.open(tmp_path / said.split()[-1]) as picture:
            assert picture.size == (512, 512)

    def test_make_serve_says_what_to_try_next(self, live):
        said = live.said.read_text()

        for part in ("latentwire generate", "grpcurl -plaintext", "curl -s", "openai.Image.create"):
            assert part in said
        (printed,) = commands(said.replace("\n\n", "\n"), "grpcurl")
        assert live.server in shlex.join(printed)
