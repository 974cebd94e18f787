"""``/openapi.json``: the API's description, generated from the table of routes and its models."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from latentwire._services.process import version
from latentwire_bridge.api_description.headers import (
    ERROR_HEADERS,
    FURTHER_HEADERS,
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
)
from latentwire_bridge.openai.answers import (
    CompletedImageEvent,
    ErrorAnswer,
    PartialImageEvent,
    ProgressEvent,
    WarningEvent,
    WithheldEvent,
)
from latentwire_bridge.openai.source_images import IMAGE_FIELDS, MASK_FIELDS
from latentwire_bridge.openai.streaming import CONTENT_TYPE as EVENT_STREAM
from latentwire_bridge.routes.table import RATE_LIMIT_HEADERS, ROUTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import core_schema

    from latentwire_bridge.openai.answers import Answer
    from latentwire_bridge.openai.schema import ImageBody
    from latentwire_bridge.routes.table import Route
    from latentwire_bridge.settings import Settings

ERRORS: Final = {
    400: "The request is invalid, does not fit the device, or its images were all withheld.",
    401: "The server requires a key. `invalid_api_key`",
    403: "The calling web page or the key is not allowed to do this.",
    404: "The model, file or URL does not exist.",
    408: "The body did not arrive in time. `request_timeout`",
    409: "The generation was cancelled. `generation_cancelled`",
    413: "The body is too large. `request_too_large`",
    415: "The body has another type. `unsupported_content_type`",
    422: "The `Idempotency-Key` belongs to another request. `idempotency_key_reused`",
    429: "The queue is full. `rate_limit_exceeded`",
    500: "An internal error; the message has the id to look for in the log.",
    503: "The server is not available at the moment.",
    504: "The images were not finished in time.",
}
EVENTS: Final[dict[str, type[Answer]]] = {
    "image_generation.partial_image": PartialImageEvent,
    "image_generation.completed": CompletedImageEvent,
    "image_edit.partial_image": PartialImageEvent,
    "image_edit.completed": CompletedImageEvent,
    "latentwire.progress": ProgressEvent,
    "latentwire.warning": WarningEvent,
    "latentwire.withheld": WithheldEvent,
    "error": ErrorAnswer,
}
_JSON: Final = "application/json"
_REFERENCE: Final = "#/components/schemas/{model}"
_BINARY: Final = {"type": "string", "format": "binary"}
_ABOUT: Final = """\
OpenAI's Images API in front of a Latentwire server.

Every path also works without `/v1`, with doubled slashes, and with `/image/` for `/images/`.
Every error, on any path, is an `ErrorAnswer`; a method that a path does not support is 405. `HEAD`
works wherever `GET` does; `OPTIONS` tells a browser whether its page may call.

In requests, null and empty fields count as absent and unknown fields are ignored. Names may be in
capitals and numbers may be text.

A key is passed on to the server, which may require one."""
_ABOUT_EVENTS: Final = """\
With `stream`: server-sent events (WHATWG HTML, 9.2), each of which has this schema. There is no
`[DONE]`; comments keep the connection open. The async client of OpenAI's Python library 1.97.0 and
1.97.1 gets no `event` lines, which it misreads."""
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
    """Serves the description."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._body: bytes | None = None

    async def get(self, request: web.Request) -> web.Response:
        """Returns the description, or 304 if the caller has it."""
        if self._body is None:
            # On a thread: it takes tens of milliseconds, once.
            document_ = await asyncio.to_thread(document, self._settings)
            self._body = json.dumps(document_).encode()
        etag = hashlib.sha256(self._body).hexdigest()
        headers = {"ETag": f'"{etag}"', "Cache-Control": "no-cache"}
        if any(tag.value in (etag, "*") for tag in request.if_none_match or ()):
            return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
        return web.Response(body=self._body, content_type=_JSON, headers=headers)


class _PlainSchema(GenerateJsonSchema):
    """Leaves out titles and defaults of null, which say nothing."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - pydantic's signature
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default", ...) is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)


def document(settings: Settings) -> JsonSchemaValue:
    """Returns the description of a bridge with these settings, as OpenAPI 3.1."""
    kinds = [kind for route in ROUTES for kind in (route.body, route.answer) if kind is not None]
    _, schemas = TypeAdapter.json_schemas(
        [(kind.__name__, "validation", TypeAdapter(kind)) for kind in {*kinds, *EVENTS.values()}],
        ref_template=_REFERENCE,
        schema_generator=_PlainSchema,
    )
    paths: JsonSchemaValue = {}
    for route in ROUTES:
        operation = _operation(route, settings, schemas["$defs"])
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    base = settings.public_url or ""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Latentwire",
            "version": version(),
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": f"{base}/v1"}, {"url": base or "/"}],
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "responses": {f"Error{status}": _error(status) for status in ERRORS},
            "headers": RESPONSE_HEADERS | ERROR_HEADERS | FURTHER_HEADERS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, settings: Settings, schemas: JsonSchemaValue) -> JsonSchemaValue:
    content: JsonSchemaValue = {}
    if route.answer is not None:
        content[_JSON] = {"schema": _reference(route.answer)}
    elif "ETag" in route.headers:
        content[_JSON] = {"schema": {"type": "object", "required": ["openapi", "paths"]}}
    else:
        content = {f"image/{kind}": {"schema": _BINARY} for kind in ("png", "jpeg", "webp")}
    if route.body is not None:
        events = [_event(name, kind) for name, kind in EVENTS.items()]
        content[EVENT_STREAM] = {"schema": {"description": _ABOUT_EVENTS, "oneOf": events}}
    headers = _headers(RESPONSE_HEADERS, route.headers)
    responses: JsonSchemaValue = {
        "200": {"description": route.summary, "headers": headers, "content": content}
    }
    if "ETag" in route.headers:
        responses["304"] = {"description": "The caller has this version.", "headers": headers}
    for status in sorted(route.errors):
        responses[str(int(status))] = {"$ref": f"#/components/responses/Error{int(status)}"}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    operation: JsonSchemaValue = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "parameters": parameters,
        "responses": responses,
    }
    if route.body is not None:
        operation["parameters"] += [
            {"name": name, "in": "header", **header} for name, header in REQUEST_HEADERS.items()
        ]
        operation["requestBody"] = _request_body(route, route.body, settings, schemas)
    return operation


def _request_body(
    route: Route, kind: type[ImageBody], settings: Settings, schemas: JsonSchemaValue
) -> JsonSchemaValue:
    content: JsonSchemaValue = {_JSON: {"schema": _reference(kind)}}
    most_bytes = settings.max_body_bytes
    if route.takes_forms:
        content["multipart/form-data"] = {"schema": _form(schemas[kind.__name__])}
        most_bytes = settings.max_upload_bytes
    else:
        content[_JSON]["examples"] = _EXAMPLES
    description = f"At most {most_bytes} bytes, which arrive within {settings.body_timeout_s:g} s."
    return {"required": True, "description": description, "content": content}


def _form(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Returns the schema of a form with the fields of a JSON object: files, and no structures."""
    properties: JsonSchemaValue = {}
    for name, field in schema["properties"].items():
        if name in IMAGE_FIELDS:
            binary = {"anyOf": [_BINARY, {"type": "array", "items": _BINARY}]}
            properties[name] = {"description": field["description"], **binary}
        elif name in MASK_FIELDS and "anyOf" in field:
            properties[name] = {"description": field["description"], **_BINARY}
        else:
            properties[name] = dict(field)
            if "anyOf" in field:
                properties[name]["anyOf"] = [
                    one
                    for one in field["anyOf"]
                    if "$ref" not in one and one.get("type") != "array"
                ]
    return {**schema, "properties": properties}


def _error(status: int) -> JsonSchemaValue:
    further = RATE_LIMIT_HEADERS if status == HTTPStatus.TOO_MANY_REQUESTS else ()
    return {
        "description": ERRORS[status],
        "headers": _headers(RESPONSE_HEADERS, ERROR_HEADERS, further),
        "content": {_JSON: {"schema": _reference(ErrorAnswer)}},
    }


def _event(name: str, kind: type[Answer]) -> JsonSchemaValue:
    data = {"type": "string", "contentMediaType": _JSON, "contentSchema": _reference(kind)}
    return {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"event": {"const": name}, "data": data},
    }


def _reference(kind: type) -> JsonSchemaValue:
    return {"$ref": _REFERENCE.format(model=kind.__name__)}


def _headers(*names: Iterable[str]) -> JsonSchemaValue:
    return {name: {"$ref": f"#/components/headers/{name}"} for group in names for name in group}
