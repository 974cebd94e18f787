"""Parses the weights in a prompt, in Automatic1111's notation.

``(word)`` has weight 1.1, ``[word]`` 1/1.1 and ``(word:1.3)`` 1.3. Nested brackets multiply, an
unclosed bracket ends with the prompt, and a backslash makes a bracket literal. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

MORE: Final = 1.1
LESS: Final = 1 / 1.1
MAX_WEIGHT: Final = 10.0
"""Of either sign. With larger ones the text encoder's output loses all meaning."""
MAX_DEPTH: Final = 32
"""The most brackets open at once: closing one visits every part inside it."""
_SIGNS: Final = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\]?)
    | (?P<opening>[(\[])
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | (?P<closing>[)\]])
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedText:
    """A part of a prompt without its brackets."""

    text: str
    weight: float


class BracketsTooDeepError(ValueError):
    """More than ``MAX_DEPTH`` brackets are open at once."""


def weighted_texts(prompt: str) -> tuple[WeightedText, ...]:
    """Returns the parts of a prompt; neighbouring parts differ in weight.

    Raises:
        BracketsTooDeepError: more than ``MAX_DEPTH`` brackets are open at once.
    """
    parts = _Parts()
    position = 0
    for sign in _SIGNS.finditer(prompt):
        parts.add(prompt[position : sign.start()])
        position = sign.end()
        escaped, opening, weight, closing = sign.group("escaped", "opening", "weight", "closing")
        if escaped is not None:
            parts.add(escaped)
        elif opening is not None:
            parts.open(opening)
        elif not (
            parts.close("(", float(weight))
            if weight is not None
            else parts.close("(" if closing == ")" else "[")
        ):
            parts.add(sign.group())
    parts.add(prompt[position:])
    return parts.finished()


class _Parts:
    """The parts parsed so far."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._weights: list[float] = []
        # Where the open brackets began. The two kinds close independently of each other.
        self._open: dict[str, list[int]] = {"(": [], "[": []}

    def add(self, text: str) -> None:
        if text:
            self._texts.append(text)
            self._weights.append(1.0)

    def open(self, bracket: str) -> None:
        self._open[bracket].append(len(self._texts))
        if sum(map(len, self._open.values())) > MAX_DEPTH:
            raise BracketsTooDeepError

    def close(self, bracket: str, weight: float | None = None) -> bool:
        """Closes the last open bracket of this kind; returns false if none is open."""
        if not self._open[bracket]:
            return False
        start = self._open[bracket].pop()
        if weight is None:
            weight = MORE if bracket == "(" else LESS
        for index in range(start, len(self._texts)):
            self._weights[index] *= weight
        return True

    def finished(self) -> tuple[WeightedText, ...]:
        for bracket, starts in self._open.items():
            while starts:
                self.close(bracket)
        runs = groupby(zip(self._weights, self._texts, strict=True), key=lambda part: part[0])
        return tuple(
            WeightedText(text="".join(text for _, text in run), weight=weight)
            for weight, run in runs
        )


def chunked(
    tokens: Sequence[int], weights: Sequence[float], *, size: int, num_chunks: int
) -> list[tuple[Sequence[int], Sequence[float]]]:
    """Splits tokens and their weights into pieces of ``size``; the last ones may be empty."""
    return [
        (tokens[start : start + size], weights[start : start + size])
        for start in range(0, num_chunks * size, size)
    ]
