"""``/openapi.json``: valid, complete, and served without a key."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from jsonschema import Draft202012Validator, ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator

import latentwire_bridge
from latentwire import AsyncClient
from latentwire_bridge.api_description.headers import (
    ERROR_HEADERS,
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
)
from latentwire_bridge.app import build_app
from latentwire_bridge.edge import browsers
from latentwire_bridge.edge.rate_limits import RateLimits
from latentwire_bridge.files.file_store import FileStore
from latentwire_bridge.openai.errors import ApiError
from latentwire_bridge.openai.schema import (
    ALIASES,
    EditBody,
    GenerationBody,
    VariationBody,
    parse_request,
)
from latentwire_bridge.openai.source_images import IMAGE_FIELDS, MASK_FIELDS
from latentwire_bridge.settings import Settings
from tests.support.bridge.bridging import Answer, bridging
from tests.support.bridge.described import DESCRIPTION, assert_described, body_schema, plain
from tests.support.bridge.request_bodies import bodies, result_or_refusal

PATH = "/openapi.json"
KINDS = {"generations": GenerationBody, "edits": EditBody, "variations": VariationBody}
IMAGE_NAMES = (*IMAGE_FIELDS, *MASK_FIELDS)
PAGE = {"Origin": "https://app.example"}
# Read by HTTP itself, or described as the key.
STANDARD = {
    "Authorization", "Content-Type", "Host", "Origin", "User-Agent",
    "Access-Control-Request-Headers",
}  # fmt: skip


def fields_of(kind: str, media_type: str = "application/json") -> dict:
    return body_schema(f"/images/{kind}", media_type)["properties"]


def test_the_description_is_valid_openapi_3_1():
    OpenAPIV31SpecValidator(DESCRIPTION).validate()
    assert DESCRIPTION["openapi"].startswith("3.1.")


async def test_the_description_is_served_without_a_key_and_can_be_cached(keyed_bridge):
    first = await keyed_bridge.get(PATH)
    assert first.status == 200
    assert first.json == DESCRIPTION
    assert (await keyed_bridge.get("/v1" + PATH)).data == first.data
    again = await keyed_bridge.get(PATH, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.data) == (304, b"")
    other = await keyed_bridge.get(PATH, headers={"If-None-Match": '"another"'})
    assert other.status == 200


async def test_web_pages_that_may_call_the_bridge_may_read_the_description(server):
    async with bridging(server.address, cors_origins=PAGE["Origin"]) as bridge:
        allowed = await bridge.get(PATH, headers=PAGE)
        assert allowed.status == 200
        assert allowed.headers["Access-Control-Allow-Origin"] == PAGE["Origin"]
    async with bridging(server.address) as bridge:
        refused = await bridge.get(PATH, headers=PAGE)
        assert (refused.status, refused.error["code"]) == (403, "origin_not_allowed")


async def test_the_description_has_the_address_and_the_limits_of_its_bridge(server):
    settings = {"public_url": "https://images.example/ai", "max_body_bytes": 12_345}
    async with bridging(server.address, **settings) as bridge:
        description = (await bridge.get(PATH)).json
    assert [one["url"] for one in description["servers"]] == [
        "https://images.example/ai/v1",
        "https://images.example/ai",
    ]
    body = description["paths"]["/images/generations"]["post"]["requestBody"]
    assert "12345 bytes" in body["description"]


async def test_every_route_is_described(tmp_path):
    async with AsyncClient("localhost:1") as client:
        files = FileStore(tmp_path, max_files=1, max_bytes=1, ttl_s=1)
        routes = build_app(
            Settings(), client=client, files=files, limits=RateLimits()
        ).router.routes()
        served = {(one.method.lower(), one.resource.canonical) for one in routes} - {
            ("head", path) for path in DESCRIPTION["paths"]
        }
    described = {
        (method, path) for path, methods in DESCRIPTION["paths"].items() for method in methods
    }
    assert served == described


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data"])
def test_every_field_is_described_under_all_its_names(kind, media_type):
    if (kind, media_type) == ("generations", "multipart/form-data"):
        return
    fields = fields_of(kind, media_type)
    names = {*KINDS[kind].model_fields, *ALIASES, *KINDS[kind].refused}
    assert names <= set(fields)
    assert [name for name, field in fields.items() if not field.get("description")] == []


@given(sent=bodies)
@pytest.mark.parametrize("kind", KINDS)
def test_every_accepted_body_matches_the_description(sent, kind):
    schema = {"properties": fields_of(kind), "components": DESCRIPTION["components"]}
    # Images are removed before the body is parsed; a blank prompt is left to the server.
    sent = {name: value for name, value in sent.items() if name not in (*IMAGE_NAMES, "prompt")}
    parsed = result_or_refusal(partial(parse_request, kind=KINDS[kind]), {"prompt": "a", **sent})

    if not isinstance(parsed, ApiError):
        json_body = json.loads(json.dumps({"prompt": "a", **sent}))
        Draft202012Validator(schema).validate(plain(json_body, schema))


@pytest.mark.parametrize(
    ("field", "spelling"),
    [("n", "2"), ("n", 2.0), ("n", None), ("n", ""), ("quality", "HD"), ("size", "64 X 64"),
     ("output_format", "JPG"), ("guidance_scale", "1e0"), ("svg", False)],
)  # fmt: skip
async def test_more_spellings_are_accepted_than_described(bridge, field, spelling):
    assert (await bridge.generate(**{field: spelling})).status == 200
    schema = body_schema("/images/generations")
    described = plain({"prompt": "a", field: spelling}, schema)
    Draft202012Validator({**schema, "components": DESCRIPTION["components"]}).validate(described)


async def test_described_defaults_are_those_of_absent_fields(bridge):
    defaults = {
        name: field["default"]
        for name, field in fields_of("generations").items()
        if "default" in field and name != "seed"
    }
    assert len(defaults) >= 8
    plain = (await bridge.generate(seed=3, num_inference_steps=2)).json
    for name, default in defaults.items():
        answer = await bridge.generate(seed=3, num_inference_steps=2, **{name: default})
        assert answer.status == 200, (name, answer.data)
        assert _images(answer.json) == _images(plain), name
        assert answer.json["size"] == plain["size"]


def _images(answer: dict) -> list[str]:
    return [datum["b64_json"] for datum in answer["data"]]


def test_every_header_that_is_read_is_described():
    read = set()
    root = Path(latentwire_bridge.__file__).parent
    for source in root.rglob("*.py"):
        parts = source.relative_to(root.parent).with_suffix("").parts
        module = import_module(".".join(parts).removesuffix(".__init__"))
        text = source.read_text()
        read |= set(re.findall(r'headers(?:\.get\(|\[)"([^"]+)"', text))
        read |= {
            getattr(module, name) for name in re.findall(r"headers(?:\.get\(|\[)([A-Z_]+)", text)
        }
    described = {
        name.lower() for name in (*REQUEST_HEADERS, *STANDARD, *RESPONSE_HEADERS, *ERROR_HEADERS)
    }
    assert "idempotency-key" in {name.lower() for name in read}
    set_by_every_server = {"server", "x-content-type-options"}
    assert {name.lower() for name in read} - described <= set_by_every_server


def test_every_header_that_pages_may_read_is_described():
    exposed = set(browsers._EXPOSED.split(", "))
    described = {name.lower() for name in DESCRIPTION["components"]["headers"]}
    assert exposed <= described


async def test_an_answer_that_deviates_from_the_description_is_caught(bridge):
    path = "/v1/images/generations"
    answer = await bridge.generate(response_format="b64_json")
    body = answer.json

    def changed(**fields: object) -> Answer:
        return dataclasses.replace(answer, data=json.dumps({**body, **fields}).encode())

    with pytest.raises(ValidationError):
        assert_described("POST", path, changed(model="new"))
    with pytest.raises(ValidationError):
        assert_described("POST", path, changed(created="now"))
    for wrong in (
        dataclasses.replace(answer, status=202),
        dataclasses.replace(answer, headers={**answer.headers, "x-new": "1"}),
        dataclasses.replace(answer, headers={"Content-Type": "application/json"}),
        dataclasses.replace(answer, headers={**answer.headers, "Content-Type": "text/plain"}),
    ):
        with pytest.raises(AssertionError):
            assert_described("POST", path, wrong)
    with pytest.raises(AssertionError):
        assert_described("GET", "/v1/new", answer)
