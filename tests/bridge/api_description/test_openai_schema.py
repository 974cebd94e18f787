"""Real answers against what OpenAI says that its own API answers."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import aiohttp
import pytest
from jsonschema import Draft202012Validator, ValidationError
from PIL import Image

from tests.support.bridge.described import events_in

OPENAIS = json.loads(
    (Path(__file__).parents[2] / "support/bridge/openai_images.schema.json").read_text()
)
PATHS = {name: f"/v1/images/{name}" for name in ("generations", "edits", "variations")}
QUALITIES = ("draft", "standard", "hd", "low", "medium", "high", "xhigh", "max", "auto", None)


def check(name: str, value: object) -> None:
    Draft202012Validator({**OPENAIS, "$ref": f"#/$defs/{name}"}).validate(value)


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 40, 40)).save(out, "PNG")
    return out.getvalue()


async def drawn(bridge, kind: str, **fields: object):
    if kind != "generations":
        url = "data:image/png;base64," + base64.b64encode(picture()).decode()
        fields["images"] = [{"image_url": url}]
    return await bridge.generate(PATHS[kind], **fields)


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("response_format", ["url", "b64_json", None])
async def test_images_are_an_images_response(bridge, kind, response_format):
    answer = await drawn(bridge, kind, n=2, response_format=response_format)
    assert answer.status == 200, answer.data
    check("ImagesResponse", answer.json)
    assert len(answer.json["data"]) == 2


async def test_a_form_is_answered_the_same_way(bridge):
    form = aiohttp.FormData({"prompt": "a", "output_format": "webp"}, default_to_multipart=True)
    form.add_field("image", picture(), filename="a.png")
    answer = await bridge.send("POST", PATHS["edits"], data=form)
    assert answer.status == 200, answer.data
    check("ImagesResponse", answer.json)


@pytest.mark.parametrize("quality", QUALITIES)
async def test_a_quality_is_told_by_a_name_that_openais_answers_have(bridge, quality):
    plain = await bridge.generate(quality=quality)
    check("ImagesResponse", plain.json)
    streamed = await bridge.generate(quality=quality, stream=True)
    ((name, event),) = events_in(streamed.data)
    check(name, event)
    told = {"draft": "low", "standard": "medium", "auto": "medium", None: "medium", "hd": "high"}
    assert plain.json["quality"] == event["quality"] == told.get(quality, quality)


async def test_where_steps_decided_no_quality_is_told(bridge):
    plain = await bridge.generate(quality="high", num_inference_steps=2)
    check("ImagesResponse", plain.json)
    assert "quality" not in plain.json
    streamed = await bridge.generate(quality="high", num_inference_steps=2, stream=True)
    ((name, event),) = events_in(streamed.data)
    check(name, event)
    assert event["quality"] == "auto"


@pytest.mark.parametrize("kind", PATHS)
async def test_events_of_a_stream_are_openais(bridge, kind):
    answer = await drawn(
        bridge, kind, stream=True, partial_images=1, num_inference_steps=8, n=2, strength=None
    )
    events = events_in(answer.data)
    for name, event in events:
        check(name, event)
    expected = "image_generation" if kind == "generations" else "image_edit"
    assert {name.partition(".")[0] for name, _ in events} == {expected}
    assert [name for name, _ in events].count(f"{expected}.completed") == 2


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("POST", PATHS["generations"], {}),
        ("POST", PATHS["generations"], {"prompt": "a", "model": "unknown"}),
        ("POST", PATHS["edits"], {"prompt": "a", "images": 7}),
        ("POST", PATHS["variations"], {"n": "many"}),
        ("POST", "/v1/models", {}),
        ("GET", "/v1/nothing", {}),
    ],
)
async def test_errors_are_an_error_response(bridge, method, path, fields):
    answer = await bridge.send(method, path, json=fields)
    assert answer.status >= 400
    check("ErrorResponse", answer.json)


async def test_models_are_a_list_of_models(bridge):
    check("ListModelsResponse", (await bridge.get("/v1/models")).json)
    check("Model", (await bridge.get("/v1/models/dall-e-3")).json)


async def test_what_openai_would_not_answer_is_noticed(bridge):
    answer = (await bridge.generate()).json
    for wrong in (
        {**answer, "created": "now"},
        {**answer, "quality": "standard"},
        {**answer, "size": "auto"},
        {**answer, "data": [{"url": None}]},
        {name: value for name, value in answer.items() if name != "created"},
    ):
        with pytest.raises(ValidationError):
            check("ImagesResponse", wrong)
