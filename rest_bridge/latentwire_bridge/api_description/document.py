"""``/openapi.json``: the description of the API, put together once from what the code says itself.

Pure but for answering requests, which is done on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web
from pydantic import TypeAdapter

from latentwire._process import version
from latentwire_bridge.api_description.operations import (
    ALWAYS,
    EVENTS,
    FAILURES,
    OF_FAILURES,
    OF_PICTURES,
    OF_TEMPORARY,
    OPERATIONS,
    SENT,
    SOMETIMES,
    TEMPORARY,
)
from latentwire_bridge.api_description.request_schemas import (
    REFERENCE,
    form_schema,
    json_schema,
    tidied,
)
from latentwire_bridge.openai.answers import ErrorAnswer
from latentwire_bridge.openai.schema import EditBody, GenerationBody
from latentwire_bridge.openai.streaming import CONTENT_TYPE as EVENT_STREAM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.json_schema import JsonSchemaValue

    from latentwire_bridge.api_description.operations import Header, Operation
    from latentwire_bridge.openai.answers import Answer
    from latentwire_bridge.settings import Settings

_JSON: Final = "application/json"
_FORM: Final = "multipart/form-data"
_FILE_TYPES: Final = ("image/png", "image/jpeg", "image/webp")
_KEY: Final = "key"
_ABOUT: Final = """\
OpenAI's Images API in front of a Latentwire server.

Every path also works without `/v1`, with doubled slashes, and with `/image/` for `/images/`.
Every error, on whatever path, has the one body `ErrorAnswer`; a method that a path does not take
is 405. `HEAD` works wherever `GET` does; `OPTIONS` tells a browser whether its page may call.

A key is passed on to the server, which may want one or not."""
_ABOUT_EVENTS: Final = """\
With `stream`: server-sent events (WHATWG HTML, 9.2). This is the schema of each of them; there is
no `[DONE]`, and comments keep the connection open. The async client of OpenAI's Python library
1.97.0 and 1.97.1 gets them without `event`, which it misreads."""
_EXAMPLES: Final = {
    "plain": {"value": {"prompt": "a red circle"}},
    "exact": {
        "value": {
            "prompt": "a red circle",
            "size": "512x512",
            "seed": 42,
            "num_inference_steps": 20,
            "response_format": "b64_json",
        }
    },
    "stream": {"value": {"prompt": "a red circle", "stream": True, "partial_images": 2}},
}


class DescriptionRoute:
    """Answers what this bridge can do."""

    def __init__(self, settings: Settings) -> None:
        """Takes what the description depends on."""
        self._settings = settings
        self._body: bytes | None = None

    async def get(self, request: web.Request) -> web.Response:
        """Returns the description, unless the caller has it."""
        if self._body is None:
            # On a thread: it takes tens of milliseconds, once.
            self._body = await asyncio.to_thread(_serialised, self._settings)
        etag = hashlib.sha256(self._body).hexdigest()
        headers = {"ETag": f'"{etag}"', "Cache-Control": "no-cache"}
        if any(tag.value in (etag, "*") for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=self._body, content_type=_JSON, headers=headers)


def _serialised(settings: Settings) -> bytes:
    return json.dumps(document(settings)).encode()


def document(settings: Settings) -> JsonSchemaValue:
    """Returns the description of a bridge with those settings, as OpenAPI 3.1."""
    base = settings.public_url or ""
    paths: JsonSchemaValue = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, settings)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Latentwire",
            "version": version(),
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": f"{base}/v1"}, {"url": base or "/"}],
        "security": [{}, {_KEY: []}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": {_name(status): _failure(status) for status in FAILURES},
            "headers": _headers(),
            "securitySchemes": {_KEY: {"type": "http", "scheme": "bearer"}},
        },
    }


def _schemas() -> JsonSchemaValue:
    """Returns the shapes of answers and events, and what they and requests refer to."""
    answers = [one.answer for one in OPERATIONS if one.answer is not None]
    kinds = {kind.__name__: kind for kind in (*answers, *EVENTS.values())}
    shapes, inner = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(kind)) for name, kind in kinds.items()],
        ref_template=REFERENCE,
    )
    named = {name: shape for (name, _), shape in shapes.items()} | inner["$defs"]
    named |= EditBody.model_json_schema(ref_template=REFERENCE)["$defs"]
    return {name: tidied(shape) for name, shape in named.items()}


def _headers() -> JsonSchemaValue:
    described = {**ALWAYS, **SOMETIMES, **OF_FAILURES, **OF_TEMPORARY}
    for operation in OPERATIONS:
        described |= operation.headers or {}
    return {
        name: {
            "description": header.description,
            "required": name in ALWAYS,
            "schema": _header(header),
        }
        for name, header in described.items()
    }


def _header(header: Header) -> JsonSchemaValue:
    schema: JsonSchemaValue = {"type": header.type_}
    return schema if header.pattern is None else {**schema, "pattern": header.pattern}


def _references(*tables: Mapping[str, Header] | None) -> JsonSchemaValue:
    return {
        name: {"$ref": f"#/components/headers/{name}"} for table in tables for name in table or {}
    }


def _name(status: int) -> str:
    return f"Failure{status}"


def _failure(status: int) -> JsonSchemaValue:
    temporary = OF_TEMPORARY if status in TEMPORARY else {}
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        temporary = {**temporary, **OF_PICTURES}
    return {
        "description": FAILURES[status],
        "headers": _references(ALWAYS, SOMETIMES, OF_FAILURES, temporary),
        "content": {_JSON: {"schema": _reference(ErrorAnswer)}},
    }


def _reference(kind: type[Answer]) -> JsonSchemaValue:
    return {"$ref": REFERENCE.format(model=kind.__name__)}


def _operation(operation: Operation, settings: Settings) -> JsonSchemaValue:
    answers: JsonSchemaValue = {"200": _success(operation)}
    if operation.id == "describe":
        answers["304"] = {
            "description": "The caller has it.",
            "headers": _references(ALWAYS, SOMETIMES, operation.headers),
        }
    for status in sorted(operation.statuses):
        answers[str(status)] = {"$ref": f"#/components/responses/{_name(status)}"}
    described: JsonSchemaValue = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": answers,
    }
    if operation.body is not None:
        described["requestBody"] = _request_body(operation, operation.body, settings)
    return described


def _parameters(operation: Operation) -> list[JsonSchemaValue]:
    in_path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": description,
            "schema": {"type": "string", "minLength": 1},
        }
        for name, description in (operation.parameters or {}).items()
    ]
    in_headers = [
        {
            "name": name,
            "in": "header",
            "description": header.description,
            "schema": _header(header),
        }
        for name, header in SENT.items()
        if operation.body is not None
    ]
    return in_path + in_headers


def _request_body(
    operation: Operation, kind: type[GenerationBody], settings: Settings
) -> JsonSchemaValue:
    content: JsonSchemaValue = {_JSON: {"schema": json_schema(kind)}}
    most_bytes = settings.max_body_bytes
    if kind is GenerationBody:
        content[_JSON]["examples"] = _EXAMPLES
    if operation.takes_forms:
        content[_FORM] = {"schema": form_schema(kind)}
        most_bytes = settings.max_upload_bytes
    description = f"At most {most_bytes} bytes, which arrive within {settings.body_timeout_s:g} s."
    return {"required": True, "description": description, "content": content}


def _success(operation: Operation) -> JsonSchemaValue:
    if operation.answer is not None:
        content = {_JSON: {"schema": _reference(operation.answer)}}
    elif operation.id == "describe":
        content = {_JSON: {"schema": {"type": "object", "required": ["openapi", "paths"]}}}
    else:
        content = {
            type_: {"schema": {"type": "string", "format": "binary"}} for type_ in _FILE_TYPES
        }
    if operation.body is not None:
        content[EVENT_STREAM] = {
            "schema": {
                "description": _ABOUT_EVENTS,
                "oneOf": [_event(name, kind) for name, kind in EVENTS.items()],
            }
        }
    return {
        "description": operation.summary,
        "headers": _references(ALWAYS, SOMETIMES, operation.headers),
        "content": content,
    }


def _event(name: str, kind: type[Answer]) -> JsonSchemaValue:
    data = {
        "type": "string",
        "contentMediaType": _JSON,
        "contentSchema": _reference(kind),
    }
    return {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"event": {"const": name}, "data": data},
    }
