"""Gives schemathesis real pictures where it would make up bytes that are none."""

from __future__ import annotations

import base64
import io
import itertools
import re

import schemathesis
from hypothesis import strategies as st
from PIL import Image


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


def _with_pictures(value):
    match value:
        case str() if re.match(r"data:[^,]{0,256},", value, re.IGNORECASE):
            return DATA_URL
        case list():
            return [_with_pictures(one) for one in value]
        case dict():
            return {name: _with_pictures(one) for name, one in value.items()}
        case _:
            return value
