"""Gives schemathesis real pictures, and tells it what the bridge takes beyond its description."""

from __future__ import annotations

import base64
import io
import itertools

import schemathesis
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from PIL import Image
from schemathesis.specs.openapi.checks import negative_data_rejection

from tests.support.bridge.described import DESCRIPTION, body_schema, plain


def _png(size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", size, (200, 40, 40, 255)).save(out, "PNG")
    return out.getvalue()


PICTURES = [_png((64, 64)), _png((96, 64))]
DATA_URL = "data:image/png;base64," + base64.b64encode(PICTURES[0]).decode()
NUMBERS = itertools.count()

schemathesis.openapi.format("binary", st.sampled_from(PICTURES))


@schemathesis.hook
def before_call(context, case, kwargs):
    """Puts a picture into whatever is the beginning of a data: URL, and repeats no key."""
    case.body = _with_pictures(case.body)
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and key.strip():
        # The same key with another body is refused, and then nothing else would be seen.
        case.headers["Idempotency-Key"] = f"{key}{next(NUMBERS)}"


@schemathesis.check
def wrong_data_rejection(ctx, response, case):
    """As ``negative_data_rejection``, but for what is only spelt in another way than described."""
    if isinstance(case.body, dict) and case.media_type and response.status_code < 400:
        schema = body_schema(case.operation.path, case.media_type)
        is_form = case.media_type != "application/json"
        body = {name: value for name, value in case.body.items() if not isinstance(value, bytes)}
        meant = plain(body, schema, is_form=is_form)
        whole = {"properties": schema["properties"], "components": DESCRIPTION["components"]}
        if meant != body and Draft202012Validator(whole).is_valid(meant):
            return None
    return negative_data_rejection(ctx, response, case)


def _with_pictures(value):
    match value:
        case str() if value.startswith("data:"):
            return DATA_URL
        case list():
            return [_with_pictures(one) for one in value]
        case dict():
            return {name: _with_pictures(one) for name, one in value.items()}
        case _:
            return value
