"""Strategies for JSON bodies of requests, valid and not, in the names that the bridge knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from latentwire_bridge.openai.errors import ApiError
from latentwire_bridge.openai.schema import ALIASES, UNSERVED, GenerationBody

if TYPE_CHECKING:
    from collections.abc import Callable

FIELD_NAMES = (*GenerationBody.model_fields, *ALIASES, *UNSERVED)

_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.integers(-(10**30), 10**30) | st.integers(-2, 9).map(str)
    | st.sampled_from(["64x64", "auto", "png", "jpg", "url", "euler", "7.5", "1e9", "\ud800", "0"])
)  # fmt: skip
values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
bodies = st.dictionaries(st.sampled_from(FIELD_NAMES) | st.text(max_size=8), values, max_size=8)


def result_or_refusal(call: Callable[[Any], object], argument: object) -> object:
    """Returns the result or the ``ApiError``; any other error would reach a caller as a 500."""
    try:
        return call(argument)
    except ApiError as refusal:
        return refusal
