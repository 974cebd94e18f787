"""Writes docs/reference/grpc.md and docs/reference/errors.md; ``make format`` calls it."""

from __future__ import annotations

from tools.references import errors, grpc
from tools.references.pages import FOLDER

if __name__ == "__main__":
    (FOLDER / "grpc.md").write_text(grpc.page())
    (FOLDER / "errors.md").write_text(errors.page())
