"""The gRPC reference: the proto file's services, messages and enums with their comments."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from tools.references.pages import NOTICE, ROOT, table

PROTO: Final = ROOT / "protos/latentwire/v1/image_generation.proto"
INTRODUCTION: Final = """\
Generated from the comments of `protos/latentwire/v1/image_generation.proto`, from which stubs in
any language are made. A running server describes it too, by reflection; see
[text to image](../guides/text_to_image.md#grpcurl)."""
_BLOCK: Final = re.compile(r"(service|message|enum|oneof) (\w+) \{(\})?")
_RPC: Final = re.compile(r"rpc (\w+)\((\w+)\) returns \((stream )?(\w+)\);")
_FIELD: Final = re.compile(r"(optional |repeated )?([\w.]+|map<[^>]+>) (\w+) = (\d+);")
_VALUE: Final = re.compile(r"(\w+) = (\d+);")


@dataclass
class Block:
    """A service, message or enum."""

    kind: str
    name: str
    text: str
    rows: list[tuple[str, ...]] = field(default_factory=list)


def page() -> str:
    """Returns the page."""
    header, blocks = _parse(PROTO.read_text())
    names = {block.name for block in blocks if block.kind != "service"}
    lines = [
        NOTICE,
        "",
        "# gRPC",
        "",
        INTRODUCTION,
        "",
        header,
        "",
    ]
    sections = {"service": "Services", "message": "Messages", "enum": "Enums"}
    for kind, title in sections.items():
        lines += [f"## {title}", ""]
        for block in blocks:
            if block.kind == kind:
                lines += [f"### {block.name}", "", block.text, "", *_rows(block, names)]
    return "\n".join(lines).rstrip() + "\n"


def _rows(block: Block, names: set[str]) -> list[str]:
    linked = [tuple(_with_link(cell, names) for cell in row[:-1]) + row[-1:] for row in block.rows]
    if block.kind == "service":
        calls = [
            (method, f"{request}<br>→ {response}", meaning)
            for method, request, response, meaning in linked
        ]
        return table(("method", "request → response", "meaning"), calls)
    if block.kind == "enum":
        return table(("value", "number", "meaning"), linked)
    return table(("field", "type", "number", "meaning"), linked)


def _with_link(cell: str, names: set[str]) -> str:
    if cell.startswith("map<"):
        return f"`{cell}`"
    label, _, type_name = cell.rpartition(" ")
    if type_name not in names:
        return cell
    return f"{label} [{type_name}](#{type_name.lower()})".strip()


def _parse(proto: str) -> tuple[str, list[Block]]:
    """Returns the file's comment, and its blocks in order.

    Reads the layout that `buf format` writes: one declaration per line, with its comment above.
    """
    header = ""
    blocks: list[Block] = []
    comment: list[str] = []
    oneof: tuple[str, str] | None = None
    for line in map(str.strip, proto.splitlines()):
        if line.startswith("//"):
            comment.append(line[2:].removeprefix(" "))
            continue
        text = _paragraphs(comment)
        cell = " ".join(text.split())
        if line.startswith("syntax"):
            header = text
        elif opened := _BLOCK.match(line):
            if opened[1] == "oneof":
                oneof = (opened[2], text)
                blocks[-1].rows.append((f"`{opened[2]}`", "one of", "", cell))
            else:
                blocks.append(Block(opened[1], opened[2], text))
        elif rpc := _RPC.match(line):
            response = f"stream of {rpc[4]}" if rpc[3] else rpc[4]
            blocks[-1].rows.append((f"`{rpc[1]}`", rpc[2], response, cell))
        elif line == "}":
            oneof = None
        elif found := _FIELD.match(line):
            name = f"`{oneof[0]}`: `{found[3]}`" if oneof else f"`{found[3]}`"
            blocks[-1].rows.append((name, f"{found[1] or ''}{found[2]}", found[4], cell))
        elif value := _VALUE.match(line):
            blocks[-1].rows.append((f"`{value[1]}`", value[2], cell))
        comment = []
    return header, blocks


def _paragraphs(comment: list[str]) -> str:
    """Returns a comment as Markdown, with each paragraph and bullet on one line."""
    lines: list[str] = []
    for line in comment:
        if line.startswith("  * "):
            # Markdown wants an empty line before a list.
            lines += [line.strip()] if lines[-1].startswith("* ") else ["", line.strip()]
        elif lines and line and lines[-1]:
            lines[-1] = f"{lines[-1]} {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)
