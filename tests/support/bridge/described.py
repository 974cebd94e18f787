"""Checks every answer of the bridge against the description in ``/openapi.json``."""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from latentwire_bridge.api_description.document import document
from latentwire_bridge.edge.edge import canonical_path
from latentwire_bridge.settings import Settings
from tests.support.bridge.event_streams import events_in, name_of

if TYPE_CHECKING:
    from tests.support.bridge.bridging import Answer

# Sent by every HTTP server.
STANDARD_HEADERS = {
    "connection", "content-length", "content-type", "date", "server", "transfer-encoding",
    "x-content-type-options",
}  # fmt: skip


DESCRIPTION: dict[str, Any] = document(Settings())


def assert_described(method: str, path: str, answer: Answer) -> None:
    """Fails if the status, type, body or headers of the answer are not described."""
    operation = _operation(method.lower(), canonical_path(path.partition("?")[0]))
    if operation is None:
        if not (method == "OPTIONS" and answer.status == 204):
            assert answer.status >= 400, f"{method} {path} works, but is not described"
            validate({"$ref": "#/components/schemas/ErrorAnswer"}, answer.json)
        return
    described = operation["responses"].get(str(answer.status))
    assert described is not None, f"{method} {path} is not described to answer {answer.status}"
    described = resolved(described)
    _check_headers(described["headers"], answer)
    if "content" in described:
        _check_body(described["content"], answer)


def validate(schema: dict[str, Any], value: object) -> None:
    _validator(json.dumps(schema)).validate(value)


@functools.cache
def _validator(schema: str) -> Draft202012Validator:
    whole = {**json.loads(schema), "components": DESCRIPTION["components"]}
    return Draft202012Validator(whole)


def body_schema(path: str, media_type: str = "application/json") -> dict[str, Any]:
    """Returns the schema of the body of a POST."""
    content = DESCRIPTION["paths"][path]["post"]["requestBody"]["content"]
    return resolved(content[media_type]["schema"])


def plain(value: Any, schema: dict[str, Any], *, is_form: bool = False) -> Any:
    """Returns a value in the spelling that the schema describes.

    The bridge also accepts undescribed ones: null and "" for absent values, names in capitals,
    numbers as text, and in forms booleans as text.
    """
    alternatives = _alternatives(schema)
    match value:
        case dict():
            properties = {
                name: field
                for one in alternatives
                for name, field in one.get("properties", {}).items()
            }
            return {
                name: plain(one, properties.get(name, {}), is_form=is_form)
                for name, one in value.items()
                if one not in (None, "")
                and not (not one and properties.get(name, {}).get("type") == "null")
            }
        case list():
            items = next((one["items"] for one in alternatives if "items" in one), {})
            return [plain(one, items, is_form=is_form) for one in value]
        case str():
            return _plain_text(value, alternatives, is_form=is_form)
        case _:
            return value


def _plain_text(text: str, alternatives: list[dict[str, Any]], *, is_form: bool) -> Any:
    if not alternatives or {"type": "string"} in alternatives:
        return text
    types = {one.get("type") for one in alternatives}
    word = text.strip().lower()
    if is_form and "boolean" in types and word in {"true", "false"}:
        return word == "true"
    if types & {"integer", "number"} and re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", word):
        return float(word) if types == {"number"} or "." in word or "e" in word else int(word)
    if any("enum" in one for one in alternatives):
        return "jpeg" if word == "jpg" else word
    if any("x" in one.get("pattern", "") for one in alternatives):
        return re.sub(r"\s*[x*]\s*", "x", word)
    return text


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    schema = resolved(schema)
    choices = [
        one
        for key in ("anyOf", "oneOf")
        for one in schema.get(key, [])
        if one.keys() != {"required"}
    ]
    return [inner for one in choices for inner in _alternatives(one)] if choices else [schema]


def _operation(method: str, path: str) -> dict[str, Any] | None:
    for template, operations in DESCRIPTION["paths"].items():
        # Names of models and files may have slashes.
        if re.fullmatch(re.sub(r"\{\w+\}", ".+", template), path):
            return operations.get(method)
    return None


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in value:
        return value
    found = DESCRIPTION
    for part in value["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def _check_headers(described: dict[str, Any], answer: Answer) -> None:
    sent = {name.lower(): value for name, value in answer.headers.items()}
    for name, reference in described.items():
        header = resolved(reference)
        assert name.lower() in sent or not header["required"], f"{name} is missing"
        if name.lower() in sent and header["schema"]["type"] == "integer":
            int(sent[name.lower()])
        if name.lower() in sent and "pattern" in header["schema"]:
            assert re.search(header["schema"]["pattern"], sent[name.lower()]), name
    assert set(sent) <= STANDARD_HEADERS | {name.lower() for name in described}


def _check_body(content: dict[str, Any], answer: Answer) -> None:
    content_type = answer.headers["Content-Type"].partition(";")[0]
    assert content_type in content, f"{content_type} is not described"
    if content_type == "application/json":
        validate(content[content_type]["schema"], answer.json)
    elif content_type == "text/event-stream":
        kinds = [one["properties"] for one in content[content_type]["schema"]["oneOf"]]
        schemas = {kind["event"]["const"]: kind["data"]["contentSchema"] for kind in kinds}
        for event in events_in(answer.data):
            validate(schemas[name_of(event)], event)
