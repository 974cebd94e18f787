"""The page of the original service, run with ``openai`` 0.28.1, for which it was written."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.bridge.client_programs import LEGACY

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.clients

PAGE_ADDRESS = "http://localhost:9225"

# The snippet as printed, without its two lines that install packages.
PAGE = """
import io
import base64
import openai

from PIL import Image

openai.api_base = "http://localhost:9225/v1"
openai.api_key = "random-string"

response = openai.Image.create(
    prompt="Iron man portrait, highly detailed, science fiction landscape, art style by klimt and nixeu and ian sprigger and wlop and krenz cushart",
    n=1,
    size="512x512"
)

image_string = response["data"][0]["b64_json"]

img = Image.open(io.BytesIO(base64.decodebytes(bytes(image_string, "utf-8"))))
img.save("iron_man.png", "PNG")
"""  # noqa: E501 - as printed

IRON_MAN = (
    "Iron man portrait, highly detailed, science fiction landscape, art style by klimt and nixeu"
    " and ian sprigger and wlop and krenz cushart"
)
EXAMPLES = (
    IRON_MAN,
    "Low polygon panda 3d",
    "3d hiper-realistic rick sanchez and morty",
    "Synthwave brad pitt wearing headphones, animated, trending on artstation, portrait",
)
"""The four example prompts of the page."""


async def run(script: str, *, bridge, cwd: Path) -> None:
    """Runs a script with the port of the test's bridge as its only change."""
    assert PAGE_ADDRESS in script
    script = script.replace(PAGE_ADDRESS, f"http://localhost:{bridge.port}")
    process = await asyncio.create_subprocess_exec(
        LEGACY.runtime, "-c", script, cwd=cwd, env={"PATH": os.environ["PATH"], "NO_PROXY": "*"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def test_the_page_of_the_original_service_works_as_printed(bridge, tmp_path):
    LEGACY.check()
    await run(PAGE, bridge=bridge, cwd=tmp_path)

    data = (tmp_path / "iron_man.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20]) == int.from_bytes(data[20:24]) == 512


async def test_the_four_examples_of_the_page_generate(bridge, server, tmp_path):
    LEGACY.check()
    assert IRON_MAN in PAGE
    pages = [
        PAGE.replace(IRON_MAN, prompt).replace("iron_man", f"example_{number}")
        for number, prompt in enumerate(EXAMPLES, start=1)
    ]
    # The text of the page has the path in the singular, which programs may have copied.
    singular = 'openai.Image.class_url = classmethod(lambda cls: "/image")\n'
    program = "\n".join([*pages[:2], singular, *pages[2:]])
    await run(program, bridge=bridge, cwd=tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"example_{number}.png" for number in (1, 2, 3, 4)
    ]
    assert all(server.model.calls_with(prompt) for prompt in EXAMPLES)
