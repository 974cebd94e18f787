"""The headers that requests and responses may have, as the API's description has them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latentwire_bridge.edge.callers import IDEMPOTENCY_KEY

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue

_TEXT: Final = {"type": "string"}
_INTEGER: Final = {"type": "integer"}
_DURATION: Final = {"type": "string", "pattern": "^([0-9]+m)?[0-9]+s$"}


def _header(
    description: str, schema: JsonSchemaValue = _TEXT, *, required: bool = False
) -> JsonSchemaValue:
    return {"description": description, "required": required, "schema": schema}


REQUEST_HEADERS: Final = {
    "x-request-id": _header("Returned with the response, if it is safe to log."),
    IDEMPOTENCY_KEY: _header(
        "The generation continues when its caller leaves, and a retry with the same key joins it.",
        {"type": "string", "pattern": r"\S"},
    ),
    "x-stainless-read-timeout": _header(
        "How many seconds the caller waits: the response comes a little earlier, or 504; in a"
        " stream the next event or comment. Anything but a number is ignored."
    ),
    "x-stainless-timeout": _header(
        "The same, as sent by `openai` for Node.js; the shorter of the two counts."
    ),
}
"""Besides ``Authorization`` and HTTP's own."""
RESPONSE_HEADERS: Final = {
    "x-request-id": _header("The request's id in the log.", required=True),
    "request-id": _header("The same, for older clients.", required=True),
    "openai-processing-ms": _header("How long the request took.", _INTEGER, required=True),
    "openai-version": _header("The version of OpenAI's API.", required=True),
    "Access-Control-Allow-Origin": _header("The web page that called, if it may."),
    "Access-Control-Expose-Headers": _header("The headers that such a page may read."),
    "Vary": _header("Whether the response depends on the web page."),
    "Cache-Control": _header("How long the response may be kept."),
}
"""The headers of every response."""
ERROR_HEADERS: Final = {
    "x-should-retry": _header("`false`: the same request would fail again."),
    "Allow": _header("The methods of this URL."),
    "Retry-After": _header("How many seconds to wait before a retry.", _INTEGER),
    "retry-after-ms": _header("The same in milliseconds.", _INTEGER),
}
"""The further headers of errors."""
FURTHER_HEADERS: Final = {
    "x-ratelimit-limit-requests": _header("How many generations may wait.", _INTEGER),
    "x-ratelimit-remaining-requests": _header("How many more may come now.", _INTEGER),
    "x-ratelimit-reset-requests": _header(
        "When everything that waits now will have begun, such as `6m0s`.", _DURATION
    ),
    "Content-Disposition": _header("The file's name."),
    "Content-Security-Policy": _header("Prevents that a file acts as a web page."),
    "ETag": _header("The version of the description, for `If-None-Match`."),
}
"""Headers of single routes."""
