"""Holds every answer of the bridge against the description that ``/openapi.json`` gives of it."""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from latentwire_bridge.api_description.document import document
from latentwire_bridge.edge.edge import canonical_path
from latentwire_bridge.settings import Settings

if TYPE_CHECKING:
    from tests.support.bridge.bridging import Answer

# What every HTTP server sends.
HTTPS_OWN = {
    "connection", "content-length", "content-type", "date", "server", "transfer-encoding",
    "x-content-type-options",
}  # fmt: skip


DESCRIPTION: dict[str, Any] = document(Settings())


def assert_described(method: str, path: str, answer: Answer) -> None:
    """Fails if the description knows no such answer: status, type, body or headers."""
    operation = _operation(method.lower(), canonical_path(path.partition("?")[0]))
    if operation is None:
        if not (method == "OPTIONS" and answer.status == 204):
            assert answer.status >= 400, f"{method} {path} works, but is not described"
            validate({"$ref": "#/components/schemas/ErrorAnswer"}, answer.json)
        return
    told = operation["responses"].get(str(answer.status))
    assert told is not None, f"{method} {path} is not described to answer {answer.status}"
    told = resolved(told)
    _check_headers(told["headers"], answer)
    if "content" in told:
        _check_body(told["content"], answer)


def validate(schema: dict[str, Any], value: object) -> None:
    _validator(json.dumps(schema)).validate(value)


@functools.cache
def _validator(schema: str) -> Draft202012Validator:
    whole = {**json.loads(schema), "components": DESCRIPTION["components"]}
    return Draft202012Validator(whole)


def body_schema(path: str, media_type: str = "application/json") -> dict[str, Any]:
    """Returns the schema of a POST's body."""
    content = DESCRIPTION["paths"][path]["post"]["requestBody"]["content"]
    return resolved(content[media_type]["schema"])


def plain(value: Any, schema: dict[str, Any], *, is_form: bool = False) -> Any:
    """Returns a value in the spelling that the schema describes.

    The bridge silently takes further ones: null and "" for what is absent, names in capitals,
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


def events_in(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Returns a stream's events by their names, without comments."""
    blocks = data.decode().removesuffix("\n\n").split("\n\n")
    pairs = [block.split("\n") for block in blocks if not block.startswith(":")]
    return [
        (name.removeprefix("event: "), json.loads(value.removeprefix("data: ")))
        for name, value in pairs
    ]


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


def _check_headers(told: dict[str, Any], answer: Answer) -> None:
    sent = {name.lower(): value for name, value in answer.headers.items()}
    for name, reference in told.items():
        header = resolved(reference)
        assert name.lower() in sent or not header["required"], f"{name} is missing"
        if name.lower() in sent and header["schema"]["type"] == "integer":
            int(sent[name.lower()])
        if name.lower() in sent and "pattern" in header["schema"]:
            assert re.search(header["schema"]["pattern"], sent[name.lower()]), name
    assert set(sent) <= HTTPS_OWN | {name.lower() for name in told}


def _check_body(told: dict[str, Any], answer: Answer) -> None:
    content_type = answer.headers["Content-Type"].partition(";")[0]
    assert content_type in told, f"{content_type} is not described"
    if content_type == "application/json":
        validate(told[content_type]["schema"], answer.json)
    elif content_type == "text/event-stream":
        kinds = [one["properties"] for one in told[content_type]["schema"]["oneOf"]]
        schemas = {kind["event"]["const"]: kind["data"]["contentSchema"] for kind in kinds}
        for name, event in events_in(answer.data):
            validate(schemas[name], event)
