"""``openai`` 0.28.1, for which the original service's page was written, in its own environment."""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path

import pytest

from tests.bridge.test_edits import file_of, half_transparent

ROOT = Path(__file__).parents[2]
CREATED_BY_MAKE = ROOT / ".venv-openai-0.28" / "bin" / "python"
CHOSEN_BY = "LATENTWIRE_TEST_OPENAI_LEGACY_PYTHON"
SKIPPED_BY = "LATENTWIRE_TEST_SKIP_OPENAI_LEGACY"
PAGE_ADDRESS = "http://localhost:9225"

# The page's snippet as printed, but for its two lines that install packages.
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
"""The page's four example prompts."""

ERRORS = """
import openai

openai.api_base = "http://localhost:9225/v1/"
openai.api_key = "random-string"


def error_of(call, **fields):
    try:
        call(**fields)
    except openai.error.OpenAIError as error:
        return error
    raise SystemExit(f"no error: {fields}")


size = error_of(openai.Image.create, prompt="a", size="100x100")
assert isinstance(size, openai.error.InvalidRequestError), size
assert size.param == "size", size.param
assert size.request_id == size.headers["x-request-id"], size.headers

model = error_of(openai.Image.create, prompt="a", model="unknown")
assert isinstance(model, openai.error.InvalidRequestError), model
assert model.code == "model_not_found", model.code

path = error_of(openai.Completion.create, model="a", prompt="a")
assert isinstance(path, openai.error.InvalidRequestError), path

edit = error_of(openai.Image.create_edit, image=b"PNG", prompt="a")
assert isinstance(edit, openai.error.InvalidRequestError), edit
assert edit.param == "image", edit.param

variation = error_of(openai.Image.create_variation, image=b"PNG")
assert variation.param == "image", variation.param
"""

EDITS = """
import base64

import openai

openai.api_base = "http://localhost:9225/v1"
openai.api_key = "random-string"
picture = base64.b64decode(PICTURE)
edit = openai.Image.create_edit(image=picture, mask=picture, prompt="a", n=2, size="64x64")
assert len(edit["data"]) == 2, edit
variation = openai.Image.create_variation(image=picture, n=1, size="64x64")
assert variation["data"][0]["b64_json"], variation
"""

FIELDS = """
import asyncio
import urllib.request

import openai

openai.api_base = "http://localhost:9225/v1/"
openai.api_key = "random-string"

response = openai.Image.create(
    prompt="a red circle", n=None, size=None, response_format="url", seed=7, steps="2",
    guidance_scale="7.5", negative_prompt="blue",
)
assert response.response_ms >= 0
data = urllib.request.urlopen(response["data"][0]["url"]).read()
assert data.startswith(b"\\x89PNG"), data[:8]
assert response["data"][0]["seed"] == 7

names = [model["id"] for model in openai.Model.list()["data"]]
assert "dall-e-2" in names, names
assert openai.Model.retrieve("models/fake")["id"] == "fake"


async def main():
    response = await openai.Image.acreate(prompt="a red circle", n=2)
    assert len(response["data"]) == 2


asyncio.run(main())
"""


@pytest.fixture(scope="module")
def legacy_python() -> str:
    chosen = os.environ.get(CHOSEN_BY) or str(CREATED_BY_MAKE)
    if os.access(chosen, os.X_OK):
        return chosen
    if os.environ.get(SKIPPED_BY):
        pytest.skip(f"{SKIPPED_BY} is set")
    pytest.fail(
        f"no Python with openai==0.28.1 at {chosen}: `make setup` creates it,"
        f" {CHOSEN_BY} names another, {SKIPPED_BY}=1 leaves these tests out"
    )


async def run(python: str, script: str, *, bridge, cwd: Path) -> str:
    """Runs a script against the bridge of the test, whose port is its only change."""
    assert PAGE_ADDRESS in script
    script = script.replace(PAGE_ADDRESS, f"http://localhost:{bridge.port}")
    process = await asyncio.create_subprocess_exec(
        python, "-c", script, cwd=cwd, env={"PATH": os.environ["PATH"], "NO_PROXY": "*"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_the_page_of_the_original_service_works_as_printed(bridge, legacy_python, tmp_path):
    await run(legacy_python, PAGE, bridge=bridge, cwd=tmp_path)

    data = (tmp_path / "iron_man.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20]) == int.from_bytes(data[20:24]) == 512


async def test_the_pages_four_examples_are_drawn(bridge, server, legacy_python, tmp_path):
    assert IRON_MAN in PAGE
    pages = [
        PAGE.replace(IRON_MAN, prompt).replace("iron_man", f"example_{number}")
        for number, prompt in enumerate(EXAMPLES, start=1)
    ]
    # Its prose writes the path in the singular, which a program may have taken over.
    singular = 'openai.Image.class_url = classmethod(lambda cls: "/image")\n'
    program = "\n".join([*pages[:2], singular, *pages[2:]])
    await run(legacy_python, program, bridge=bridge, cwd=tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"example_{number}.png" for number in (1, 2, 3, 4)
    ]
    assert all(server.model.calls_with(prompt) for prompt in EXAMPLES)


async def test_errors_have_the_classes_that_its_users_catch(bridge, legacy_python, tmp_path):
    await run(legacy_python, ERRORS, bridge=bridge, cwd=tmp_path)


async def test_edits_and_variations_are_drawn(bridge, legacy_python, tmp_path):
    picture = base64.b64encode(file_of(half_transparent())).decode()
    program = EDITS.replace("PICTURE", repr(picture))
    await run(legacy_python, program, bridge=bridge, cwd=tmp_path)


async def test_fields_urls_models_and_coroutines_work(bridge, legacy_python, tmp_path):
    await run(legacy_python, FIELDS, bridge=bridge, cwd=tmp_path)
