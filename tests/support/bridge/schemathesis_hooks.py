"""Hooks for schemathesis: real images, and the spellings accepted beyond the description."""

from __future__ import annotations

import itertools

import schemathesis
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis.specs.openapi.checks import negative_data_rejection

from tests.support.bridge.described import DESCRIPTION, body_schema, plain
from tests.support.bridge.images import data_url, file_of, plain_image

IMAGES = [file_of(plain_image(*size).convert("RGBA")) for size in ((64, 64), (96, 64))]
DATA_URL = data_url(IMAGES[0])
NUMBERS = itertools.count()

schemathesis.openapi.format("binary", st.sampled_from(IMAGES))


@schemathesis.hook
def before_call(context, case, kwargs):
    """Replaces every data: URL by one of an image, and makes every idempotency key unique."""
    case.body = _with_images(case.body)
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and key.strip():
        # A key that was used with another body is refused, which would hide every other answer.
        case.headers["Idempotency-Key"] = f"{key}{next(NUMBERS)}"


@schemathesis.check
def wrong_data_rejection(ctx, response, case):
    """Runs ``negative_data_rejection``, except for values that only have another spelling."""
    if isinstance(case.body, dict) and case.media_type and response.status_code < 400:
        schema = body_schema(case.operation.path, case.media_type)
        is_form = case.media_type != "application/json"
        body = {name: value for name, value in case.body.items() if not isinstance(value, bytes)}
        respelled = plain(body, schema, is_form=is_form)
        whole = {"properties": schema["properties"], "components": DESCRIPTION["components"]}
        if respelled != body and Draft202012Validator(whole).is_valid(respelled):
            return None
    return negative_data_rejection(ctx, response, case)


def _with_images(value):
    match value:
        case str() if value.startswith("data:"):
            return DATA_URL
        case list():
            return [_with_images(one) for one in value]
        case dict():
            return {name: _with_images(one) for name, one in value.items()}
        case _:
            return value
