"""The bodies that requests may have, as JSON Schema: made of ``schema.py``, so that it is true.

A schema takes all that the bridge takes by itself. What depends on another field or on the model
may be refused all the same. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latentwire_bridge.edge.uploads import BOOLEANS, DATA_URL_HEAD, IMAGE_FIELDS, MASK_FIELDS
from latentwire_bridge.openai.fields import in_any_case
from latentwire_bridge.openai.schema import ALIASES, EditBody, VariationBody

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic.json_schema import JsonSchemaValue

    from latentwire_bridge.openai.schema import GenerationBody

REFERENCE: Final = "#/components/schemas/{model}"
_ASKS_FOR_NOTHING: Final[tuple[object, ...]] = (None, False, 0, "", [], {})
_CHOICES: Final = ("anyOf", "oneOf")
"""Where types stand beside each other; of ours no value is of two."""
_BINARY: Final = {"type": "string", "format": "binary"}
_BOOLEAN_TEXT: Final = {"type": "string", "pattern": rf"^\s*({in_any_case(BOOLEANS)})\s*$"}
_DATA_URL: Final = {"type": "string", "pattern": f"^{DATA_URL_HEAD}"}
_PICTURE: Final = {
    "description": "A data: URL in base64; nothing is fetched from anywhere.",
    "anyOf": [
        _DATA_URL,
        {"type": "object", "required": ["image_url"], "properties": {"image_url": _DATA_URL}},
    ],
}
_ONE_PICTURE: Final = "A PNG, JPEG or WebP; one under all these names."
_NO_MASK: Final = "Refused: belongs to /v1/images/edits."
_MASK: Final = "What is transparent in it is redrawn; without transparency what is white."


def json_schema(kind: type[GenerationBody]) -> JsonSchemaValue:
    """Returns what a JSON body of that kind may be."""
    fields = _fields(kind)
    for name, field in fields.items():
        if name not in _required(kind):
            field["anyOf"] = [*_alternatives(field), {"type": "null"}, {"const": ""}]
    fields |= _refused(kind, allowed=_ASKS_FOR_NOTHING)
    if issubclass(kind, EditBody):
        several = [*_PICTURE["anyOf"], {"type": "array", "items": _PICTURE}, {"type": "null"}]
        fields |= {name: {"description": _ONE_PICTURE, "anyOf": several} for name in IMAGE_FIELDS}
        allowed = [] if issubclass(kind, VariationBody) else _PICTURE["anyOf"]
        mask = {"description": _MASK, "anyOf": [*allowed, {"type": "null"}, {"const": ""}]}
        if issubclass(kind, VariationBody):
            mask["description"] = _NO_MASK
        fields |= dict.fromkeys(MASK_FIELDS, mask)
    return _object(kind, fields)


def form_schema(kind: type[GenerationBody]) -> JsonSchemaValue:
    """Returns what a form of that kind may be, in which everything is text."""
    fields = _fields(kind)
    for field in fields.values():
        alternatives = [one for one in _alternatives(field) if not _is_structure(one)]
        if {"type": "boolean"} in alternatives:
            alternatives.append(_BOOLEAN_TEXT)
        field["anyOf"] = [*alternatives, {"const": ""}]
    fields |= _refused(kind, allowed=("",))
    for name in _names_of("scheduler"):
        fields[f"{name}[id]"] = {"type": "string", "description": "A sampler of the model."}
        fields[f"{name}[sigmas]"] = {"type": "string", "description": "Its noise levels' spacing."}
    pictures = {
        "description": _ONE_PICTURE,
        "anyOf": [_BINARY, {"type": "array", "items": _BINARY}],
    }
    fields |= dict.fromkeys(IMAGE_FIELDS, pictures)
    if not issubclass(kind, VariationBody):
        fields |= {name: {"description": _MASK, **_BINARY} for name in MASK_FIELDS}
    return _object(kind, fields)


def tidied(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Returns a schema of pydantic's without titles and nulls as defaults, which say nothing."""
    kept: JsonSchemaValue = {}
    for name, value in schema.items():
        if name == "title" or (name == "default" and value is None):
            continue
        match value:
            case dict() if name == "properties":
                kept[name] = {key: tidied(one) for key, one in value.items()}
            case dict():
                kept[name] = tidied(value)
            case list():
                kept[name] = [tidied(one) if isinstance(one, dict) else one for one in value]
            case _:
                kept[name] = value
    return kept


def _fields(kind: type[GenerationBody]) -> dict[str, JsonSchemaValue]:
    """Returns the fields by all their names."""
    whole = kind.model_json_schema(ref_template=REFERENCE)
    fields: dict[str, JsonSchemaValue] = tidied(whole)["properties"]
    for alias, name in ALIASES.items():
        if name in fields:
            fields[alias] = {**fields[name], "description": f"Another name of `{name}`."}
    return fields


def _refused(
    kind: type[GenerationBody], *, allowed: Sequence[object]
) -> dict[str, JsonSchemaValue]:
    return {
        name: {"description": f"Refused: {reason}.", "enum": list(allowed)}
        for name, reason in kind.unserved.items()
    }


def _alternatives(field: JsonSchemaValue) -> list[JsonSchemaValue]:
    """Takes the types out of a field's schema and returns them, without null, one beside another.

    What is left of the schema says what holds for all of them.
    """
    whole = {key: field.pop(key) for key in set(field) - {"description", "default"}}
    nested = [whole]
    while any(one.keys() & _CHOICES for one in nested):
        nested = [inner for one in nested for inner in _choices(one)]
    return [one for one in nested if one != {"type": "null"}]


def _choices(schema: JsonSchemaValue) -> list[JsonSchemaValue]:
    for name in _CHOICES:
        if name in schema:
            choices: list[JsonSchemaValue] = schema[name]
            return choices
    return [schema]


def _is_structure(alternative: JsonSchemaValue) -> bool:
    return "$ref" in alternative or alternative.get("type") == "array"


def _names_of(name: str) -> list[str]:
    return [name, *(alias for alias, other in ALIASES.items() if other == name)]


def _required(kind: type[GenerationBody]) -> list[str]:
    return [name for name, field in kind.model_fields.items() if field.is_required()]


def _object(kind: type[GenerationBody], fields: Mapping[str, JsonSchemaValue]) -> JsonSchemaValue:
    schema: JsonSchemaValue = {
        "type": "object",
        "description": f"{kind.__doc__} What is empty is absent, an unknown field is ignored.",
        "required": _required(kind),
        "properties": dict(fields),
    }
    if issubclass(kind, EditBody):
        schema["anyOf"] = [{"required": [name]} for name in IMAGE_FIELDS]
    return schema
