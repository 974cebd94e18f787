"""Chooses the models that are unloaded to make room for another one: no torch, no clock.

Idle models only, the least recently used first. A model whose room is not needed stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A loaded model."""

    id: str
    size_bytes: int
    last_used: float
    """On any clock, the same for all models."""
    is_in_use: bool


@dataclass(eq=False)
class TooLargeError(Exception):
    """The model does not fit even alone."""

    size_bytes: int
    budget_bytes: int


def models_to_unload(
    size_bytes: int, *, budget_bytes: int, residents: Iterable[Resident]
) -> tuple[str, ...] | None:
    """Returns the ids of the models to unload so that ``size_bytes`` fit.

    None: the models in use leave too little room.

    Raises:
        TooLargeError: It does not fit even alone.
    """
    loaded = list(residents)
    if size_bytes > budget_bytes:
        raise TooLargeError(size_bytes, budget_bytes)
    free_bytes = budget_bytes - sum(one.size_bytes for one in loaded)
    leaving: list[Resident] = []
    idle = sorted((one for one in loaded if not one.is_in_use), key=lambda one: one.last_used)
    for one in idle:
        if free_bytes >= size_bytes:
            break
        leaving.append(one)
        free_bytes += one.size_bytes
    if free_bytes < size_bytes:
        return None
    # After a large model, the room of smaller ones may not be needed: the last used stay first.
    spare_bytes = free_bytes - size_bytes
    for one in leaving[::-1]:
        if one.size_bytes <= spare_bytes:
            spare_bytes -= one.size_bytes
            leaving.remove(one)
    return tuple(one.id for one in leaving)
