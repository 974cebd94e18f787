"""Pages of lists, and resource names. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeVar

from latentwire_server.engine.errors import InvalidRequest, Violation

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1_000
_TOKEN: Final = re.compile("[0-9]{1,9}")

Item = TypeVar("Item")


def page_of(
    items: Sequence[Item], *, page_size: int, page_token: str
) -> tuple[Sequence[Item], str]:
    """Returns the items of a page and the token of the next one, empty if there is none.

    A token is a position: items that leave or arrive between two calls shift the pages.

    Raises:
        InvalidRequest: The size is out of range, or the token is not one of the server's.
    """
    violations = []
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        description = f"page_size is {page_size}; allowed: 1 to {MAX_PAGE_SIZE}, 0 for the default"
        violations.append(
            Violation(field="page_size", reason="OUT_OF_RANGE", description=description)
        )
    if page_token and not _TOKEN.fullmatch(page_token):
        description = "page_token is not from an earlier answer"
        violations.append(
            Violation(field="page_token", reason="UNKNOWN_VALUE", description=description)
        )
    if violations:
        raise InvalidRequest(tuple(violations))
    start = int(page_token or 0)
    end = start + (page_size or DEFAULT_PAGE_SIZE)
    return items[start:end], str(end) if end < len(items) else ""


def required_name(name: str, *, collection: str) -> str:
    """Returns a resource name such as ``generations/{id}``, or a bare id, as it was sent.

    Raises:
        InvalidRequest: The name is empty.
    """
    if not name:
        description = f"name is empty; needed: {collection}/{{id}}"
        violation = Violation(field="name", reason="REQUIRED", description=description)
        raise InvalidRequest((violation,))
    return name
