"""Real answers against the schemas that OpenAI publishes for its own API."""

from __future__ import annotations

import json

import aiohttp
import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.support.bridge.event_streams import events_in, name_of
from tests.support.bridge.images import data_url, file_of, plain_image
from tests.support.tooling import ROOT

OPENAI_SCHEMA = json.loads((ROOT / "tests/support/bridge/openai_images.schema.json").read_text())
PATHS = {name: f"/v1/images/{name}" for name in ("generations", "edits", "variations")}
QUALITIES = ("draft", "standard", "hd", "low", "medium", "high", "xhigh", "max", "auto", None)


def check(name: str, value: object) -> None:
    Draft202012Validator({**OPENAI_SCHEMA, "$ref": f"#/$defs/{name}"}).validate(value)


async def answer_of(bridge, kind: str, **fields: object):
    if kind != "generations":
        fields["images"] = [{"image_url": data_url(file_of(plain_image()))}]
    return await bridge.generate(PATHS[kind], **fields)


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("response_format", ["url", "b64_json", None])
async def test_generated_images_match_openais_images_response(bridge, kind, response_format):
    answer = await answer_of(bridge, kind, n=2, response_format=response_format)
    assert answer.status == 200, answer.data
    check("ImagesResponse", answer.json)
    assert len(answer.json["data"]) == 2


async def test_the_answer_to_a_form_matches_openais_images_response(bridge):
    form = aiohttp.FormData({"prompt": "a", "output_format": "webp"}, default_to_multipart=True)
    form.add_field("image", file_of(plain_image()), filename="a.png")
    answer = await bridge.send("POST", PATHS["edits"], data=form)
    assert answer.status == 200, answer.data
    check("ImagesResponse", answer.json)


@pytest.mark.parametrize("quality", QUALITIES)
async def test_a_quality_is_answered_by_one_of_openais_names(bridge, quality):
    plain = await bridge.generate(quality=quality)
    check("ImagesResponse", plain.json)
    streamed = await bridge.generate(quality=quality, stream=True)
    (event,) = events_in(streamed.data)
    check(name_of(event), event)
    names = {"draft": "low", "standard": "medium", "auto": "medium", None: "medium", "hd": "high"}
    assert plain.json["quality"] == event["quality"] == names.get(quality, quality)


async def test_explicit_steps_leave_the_quality_out_of_the_answer(bridge):
    plain = await bridge.generate(quality="high", num_inference_steps=2)
    check("ImagesResponse", plain.json)
    assert "quality" not in plain.json
    streamed = await bridge.generate(quality="high", num_inference_steps=2, stream=True)
    (event,) = events_in(streamed.data)
    check(name_of(event), event)
    assert event["quality"] == "auto"


@pytest.mark.parametrize("kind", PATHS)
async def test_stream_events_match_openais(bridge, kind):
    answer = await answer_of(
        bridge, kind, stream=True, partial_images=1, num_inference_steps=8, n=2, strength=None
    )
    events = events_in(answer.data)
    names = [name_of(event) for event in events]
    for name, event in zip(names, events, strict=True):
        check(name, event)
    expected = "image_generation" if kind == "generations" else "image_edit"
    assert {name.partition(".")[0] for name in names} == {expected}
    assert names.count(f"{expected}.completed") == 2


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
async def test_errors_match_openais_error_response(bridge, method, path, fields):
    answer = await bridge.send(method, path, json=fields)
    assert answer.status >= 400
    check("ErrorResponse", answer.json)


async def test_models_match_openais_list_of_models(bridge):
    check("ListModelsResponse", (await bridge.get("/v1/models")).json)
    check("Model", (await bridge.get("/v1/models/dall-e-3")).json)


async def test_an_answer_that_deviates_from_openais_schema_is_caught(bridge):
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
