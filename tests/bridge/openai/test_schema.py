"""The request schema with plain values: every body makes a request or is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire._requests import build_request
from latentwire_bridge.edge.body import parse_object
from latentwire_bridge.openai.errors import ApiError
from latentwire_bridge.openai.requests import generate_options
from latentwire_bridge.openai.schema import parse_request
from latentwire_bridge.settings import OPENAI_MODELS, Settings
from tests.support.bridge.request_bodies import FIELD_NAMES, bodies, result_or_refusal, values
from tests.support.tooling import ROOT

DOCUMENT = ROOT / "docs/reference/rest.md"


@given(sent=bodies)
def test_any_json_object_makes_a_request_or_is_refused(sent):
    wanted = result_or_refusal(parse_request, {"prompt": "a", **sent})

    if isinstance(wanted, ApiError):
        assert wanted.status == 400
        assert wanted.param
        assert wanted.code
    else:
        request = build_request(wanted.body.prompt, generate_options(wanted.body, model=""))
        request.SerializeToString()


@given(data=st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_json_object_or_are_refused(data):
    value = result_or_refusal(parse_object, data)

    if isinstance(value, ApiError):
        assert value.status == 400
        assert value.code == "invalid_json"
    else:
        assert isinstance(value, dict)


def test_all_violations_are_reported_at_once():
    with pytest.raises(ApiError) as refused:
        parse_request({"n": 0, "stream": 1, "steps": 0, "size": "big"})

    for param in ("'prompt'", "'n'", "'stream'", "'steps'", "'size'"):
        assert param in refused.value.message


def test_every_field_name_is_documented():
    text = DOCUMENT.read_text()

    missing = [name for name in FIELD_NAMES if f"`{name}`" not in text and name != "image[]"]
    assert missing == []


def test_openais_model_names_are_aliases_of_the_default_model():
    aliases = Settings().aliases

    assert {aliases[name] for name in OPENAI_MODELS} == {""}


@pytest.mark.parametrize("field", [{"frame_count": 4}, {"svg": {"model": "x"}}, {"markup": "x"}])
def test_unsupported_fields_that_would_change_the_image_are_refused_by_name(field):
    with pytest.raises(ApiError) as caught:
        parse_request({"prompt": "a", **field})
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param in field


def test_values_may_be_in_capitals():
    sent = {"quality": "HD", "style": "Vivid", "moderation": "LOW", "background": "Opaque"}
    body = parse_request({"prompt": "a", **sent}).body
    assert (body.quality, body.style, body.moderation) == ("hd", "vivid", "low")
