"""Which models make room for another one: pure arithmetic, no torch, no clock.

Least recently used first, and only those that nobody needs; what does not help is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A loaded model, as the plan sees it."""

    id: str
    size_bytes: int
    last_used: float
    """On any clock that all of them share."""
    is_in_use: bool


@dataclass(eq=False)
class TooLargeError(Exception):
    """It would not fit even alone."""

    size_bytes: int
    budget_bytes: int


def models_to_unload(
    size_bytes: int, *, budget_bytes: int, residents: Iterable[Resident]
) -> tuple[str, ...] | None:
    """Returns the ids of the models that must go for ``size_bytes`` to fit, in order.

    None: those in use leave too little room.

    Raises:
        TooLargeError: nothing helps.
    """
    known = list(residents)
    if size_bytes > budget_bytes:
        raise TooLargeError(size_bytes, budget_bytes)
    free_bytes = budget_bytes - sum(one.size_bytes for one in known)
    leaving: list[Resident] = []
    idle = sorted((one for one in known if not one.is_in_use), key=lambda one: one.last_used)
    for one in idle:
        if free_bytes >= size_bytes:
            break
        leaving.append(one)
        free_bytes += one.size_bytes
    if free_bytes < size_bytes:
        return None
    return tuple(one.id for one in _needed(leaving, spare_bytes=free_bytes - size_bytes))


def _needed(leaving: list[Resident], *, spare_bytes: int) -> list[Resident]:
    """Returns those without whom it does not fit: a large one may make a small one's room moot."""
    kept = []
    # Whoever was used last is spared first.
    for one in reversed(leaving):
        if one.size_bytes <= spare_bytes:
            spare_bytes -= one.size_bytes
        else:
            kept.append(one)
    return kept[::-1]
