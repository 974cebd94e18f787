"""The rules of requests, as plain values: whatever is sent makes a request or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire._requests import build_request
from latentwire_bridge.edge.body import parse_object
from latentwire_bridge.openai.errors import ApiError
from latentwire_bridge.openai.requests import generate_options
from latentwire_bridge.openai.schema import ALIASES, UNSERVED, GenerationBody, parse_request
from latentwire_bridge.settings import OPENAI_MODELS, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

DOCUMENT = Path(__file__).parents[3] / "docs" / "reference" / "rest.md"
KNOWN = (*GenerationBody.model_fields, *ALIASES, *UNSERVED)

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.integers(-(10**30), 10**30) | st.integers(-2, 9).map(str)
    | st.sampled_from(["64x64", "auto", "png", "jpg", "url", "euler", "7.5", "1e9", "\ud800", "0"])
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
bodies = st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=8), values, max_size=8)


def attempted(call: Callable[[Any], object], argument: object) -> object:
    """Returns the result, or the refusal; anything else is a bug that a caller would see as 500."""
    try:
        return call(argument)
    except ApiError as refusal:
        return refusal


@given(sent=bodies)
def test_any_object_makes_a_request_for_the_server_or_is_refused(sent):
    wanted = attempted(parse_request, {"prompt": "a", **sent})

    if isinstance(wanted, ApiError):
        assert wanted.status == 400
        assert wanted.param
        assert wanted.code
    else:
        request = build_request(wanted.body.prompt, generate_options(wanted.body, model=""))
        request.SerializeToString()


@given(data=st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_are_refused(data):
    value = attempted(parse_object, data)

    if isinstance(value, ApiError):
        assert value.status == 400
        assert value.code == "invalid_json"
    else:
        assert isinstance(value, dict)


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(ApiError) as refused:
        parse_request({"n": 0, "stream": 1, "steps": 0, "size": "big"})

    for param in ("'prompt'", "'n'", "'stream'", "'steps'", "'size'"):
        assert param in refused.value.message


def test_every_name_is_documented():
    text = DOCUMENT.read_text()

    missing = [name for name in KNOWN if f"`{name}`" not in text and name != "image[]"]
    assert missing == []


def test_every_name_of_openais_models_stands_for_the_default_one():
    aliases = Settings().aliases

    assert {aliases[name] for name in OPENAI_MODELS} == {""}


@pytest.mark.parametrize("field", [{"frame_count": 4}, {"svg": {"model": "x"}}, {"markup": "x"}])
def test_what_would_change_the_picture_and_is_not_drawn_is_refused_by_name(field):
    with pytest.raises(ApiError) as caught:
        parse_request({"prompt": "a", **field})
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param in field


def test_names_may_come_in_capitals():
    sent = {"quality": "HD", "style": "Vivid", "moderation": "LOW", "background": "Opaque"}
    body = parse_request({"prompt": "a", **sent}).body
    assert (body.quality, body.style, body.moderation) == ("hd", "vivid", "low")
