"""What can be done over REST: each operation's address, bodies and answers, in words. Pure.

Fields and shapes are not written down here: ``schema.py`` and ``answers.py`` have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from latentwire_bridge.edge.callers import IDEMPOTENCY_KEY
from latentwire_bridge.openai.answers import (
    CompletedImageEvent,
    ErrorAnswer,
    ImagesAnswer,
    ModelAnswer,
    ModelsAnswer,
    PartialImageEvent,
    ProgressEvent,
    StatusAnswer,
    WarningEvent,
    WithheldEvent,
)
from latentwire_bridge.openai.errors import SERVER_STATUSES
from latentwire_bridge.openai.schema import EditBody, GenerationBody, VariationBody

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latentwire_bridge.openai.answers import Answer

EVENTS: Final[Mapping[str, type[Answer]]] = {
    "image_generation.partial_image": PartialImageEvent,
    "image_generation.completed": CompletedImageEvent,
    "image_edit.partial_image": PartialImageEvent,
    "image_edit.completed": CompletedImageEvent,
    "latentwire.progress": ProgressEvent,
    "latentwire.warning": WarningEvent,
    "latentwire.withheld": WithheldEvent,
    "error": ErrorAnswer,
}
"""The names of a stream's events, and what their data is."""

FAILURES: Final[Mapping[int, str]] = {
    400: "The request is wrong, asks for more than the device has, or shows what is not shown.",
    401: "The server wants a key. `invalid_api_key`",
    403: "A page calls that nobody allowed, or the key does not allow it.",
    404: "There is no such model, file or URL.",
    408: "The body did not arrive in time. `request_timeout`",
    409: "Somebody cancelled the generation. `generation_cancelled`",
    413: "The body is too large. `request_too_large`",
    415: "The body is of another type. `unsupported_content_type`",
    422: "The `Idempotency-Key` belongs to another request. `idempotency_key_reused`",
    429: "Too many generations wait. `rate_limit_exceeded`",
    500: "A fault; the message has the id to look for in the log.",
    503: "The server is not there just now.",
    504: "It was not done in time.",
}
"""What each status means."""
TEMPORARY: Final = frozenset({429, 503})
"""Statuses that may say when to try again."""

_ANYWHERE: Final = frozenset({400, 403, 500})
_OF_BODIES: Final = frozenset({408, 413, 415})


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header by what it means."""

    description: str
    type_: str = "string"
    pattern: str | None = None


SENT: Final[Mapping[str, Header]] = {
    "x-request-id": Header(description="Comes back, if it may stand in a log."),
    IDEMPOTENCY_KEY: Header(
        description="With it a drawing goes on when its caller leaves; who asks again joins it.",
        pattern=r"\S",
    ),
    "x-stainless-read-timeout": Header(
        description="How many seconds the caller waits: the answer comes a little earlier, or 504;"
        " in a stream, for its next piece."
        " What is no number has no effect."
    ),
    "x-stainless-timeout": Header(
        description="The same, as Node.js's `openai` tells it; the shorter of the two counts."
    ),
}
"""Headers of requests that are read, besides ``Authorization`` and HTTP's own."""
ALWAYS: Final[Mapping[str, Header]] = {
    "x-request-id": Header(description="The request's id, to look for in the log."),
    "request-id": Header(description="The same, for older clients."),
    "openai-processing-ms": Header(description="How long it took.", type_="integer"),
    "openai-version": Header(description="The version of OpenAI's API."),
}
"""Headers of every answer."""
SOMETIMES: Final[Mapping[str, Header]] = {
    "Access-Control-Allow-Origin": Header(description="The page that asked, if it may."),
    "Access-Control-Expose-Headers": Header(description="What such a page may read."),
    "Vary": Header(description="Whether the answer depends on the page."),
    "Cache-Control": Header(description="For how long the answer holds."),
}
OF_PICTURES: Final[Mapping[str, Header]] = {
    "x-ratelimit-limit-requests": Header(
        description="How many generations may wait.", type_="integer"
    ),
    "x-ratelimit-remaining-requests": Header(
        description="How many more would find room.", type_="integer"
    ),
    "x-ratelimit-reset-requests": Header(
        description="When all that waits now will have begun, such as `6m0s`.",
        pattern="^([0-9]+m)?[0-9]+s$",
    ),
}
"""Absent if the server did not tell."""
OF_FILES: Final[Mapping[str, Header]] = {
    "Content-Disposition": Header(description="The file's name."),
    "Content-Security-Policy": Header(description="Keeps a file from being a page."),
}
OF_DESCRIPTION: Final[Mapping[str, Header]] = {
    "ETag": Header(description="Of this description; with `If-None-Match` it is sent only if new."),
}
OF_FAILURES: Final[Mapping[str, Header]] = {
    "x-should-retry": Header(description="`false`: the same request would fail again."),
    "Allow": Header(description="The methods that this URL takes."),
}
OF_TEMPORARY: Final[Mapping[str, Header]] = {
    "Retry-After": Header(description="In how many seconds to try again.", type_="integer"),
    "retry-after-ms": Header(description="The same in milliseconds.", type_="integer"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    id: str
    summary: str
    answer: type[Answer] | None = None
    """The JSON of its success; None: something else."""
    body: type[GenerationBody] | None = None
    takes_forms: bool = False
    statuses: frozenset[int] = _ANYWHERE
    """Those of its failures."""
    headers: Mapping[str, Header] | None = None
    """Of its success, besides those of every answer."""
    parameters: Mapping[str, str] | None = None
    """Of its path."""


def _draws(
    path: str, *, id_: str, summary: str, body: type[GenerationBody], takes_forms: bool
) -> Operation:
    return Operation(
        method="post",
        path=path,
        id=id_,
        summary=summary,
        answer=ImagesAnswer,
        body=body,
        takes_forms=takes_forms,
        statuses=_ANYWHERE | _OF_BODIES | SERVER_STATUSES,
        headers=OF_PICTURES,
    )


OPERATIONS: Final = (
    _draws(
        "/images/generations",
        id_="createImage",
        summary="Draws images from a prompt.",
        body=GenerationBody,
        takes_forms=False,
    ),
    _draws(
        "/images/edits",
        id_="createImageEdit",
        summary="Draws images from a picture, or in a mask of it.",
        body=EditBody,
        takes_forms=True,
    ),
    _draws(
        "/images/variations",
        id_="createImageVariation",
        summary="Draws images that are much like a picture.",
        body=VariationBody,
        takes_forms=True,
    ),
    Operation(
        method="get",
        path="/models",
        id="listModels",
        summary="Lists the models by all their names.",
        answer=ModelsAnswer,
        statuses=_ANYWHERE | SERVER_STATUSES,
    ),
    Operation(
        method="get",
        path="/models/{id}",
        id="retrieveModel",
        summary="Returns a model by any of its names; slashes may be part of it.",
        answer=ModelAnswer,
        statuses=_ANYWHERE | SERVER_STATUSES,
        parameters={"id": "The model's name."},
    ),
    Operation(
        method="get",
        path="/files/{name}",
        id="retrieveFile",
        summary="Returns an image by its `url`. Needs no key: whoever knows the name may.",
        statuses=_ANYWHERE | {HTTPStatus.NOT_FOUND},
        headers=OF_FILES,
        parameters={"name": "The last part of the image's `url`."},
    ),
    Operation(
        method="get",
        path="/healthz",
        id="isAlive",
        summary="Tells whether the bridge answers.",
        answer=StatusAnswer,
    ),
    Operation(
        method="get",
        path="/readyz",
        id="isReady",
        summary="Tells whether the server behind it can draw.",
        answer=StatusAnswer,
        statuses=_ANYWHERE | {HTTPStatus.SERVICE_UNAVAILABLE},
    ),
    Operation(
        method="get",
        path="/openapi.json",
        id="describe",
        summary="Returns this description.",
        headers=OF_DESCRIPTION,
    ),
)
