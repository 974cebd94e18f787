"""How the settings are shown to people: flags, defaults, a Markdown table for the documentation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from latentwire_server.settings.settings import (
    ENV_PREFIX,
    SECRET_FIELDS,
    STRUCTURED_FIELDS,
    Settings,
)

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo


def flag(field: str) -> str | None:
    """Returns a setting's flag; None where the command line does not take it."""
    return None if field in SECRET_FIELDS | STRUCTURED_FIELDS else "--" + field.replace("_", "-")


def default_text(info: FieldInfo) -> str:
    """Returns a setting's default for people."""
    value = info.default
    if value is None or value == ():
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def markdown_table() -> str:
    """Returns every setting as rows of a Markdown table."""
    rows = ["| flag | environment | default | meaning |", "| --- | --- | --- | --- |"]
    for name, info in Settings.model_fields.items():
        default = default_text(info)
        cells = (
            f"`{flag(name)}`" if flag(name) else "",
            f"`{ENV_PREFIX}{name.upper()}`",
            f"`{default}`" if default else "",
            info.description or "",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown_table())
