"""Writes the tables of settings into README.md, from the classes that read them.

``python -m tools.settings_tables`` rewrites the file; ``make format`` calls it.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Final

README: Final = Path(__file__).parent.parent / "README.md"
_TABLE: Final = re.compile(r"(<!-- settings: ([\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """Returns the text with every table of settings as it is now."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{_table(found[2])}\n{found[3]}", text)


def _table(module: str) -> str:
    table: str = import_module(module).markdown_table()
    return table


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
