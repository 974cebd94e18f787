"""The operator's list of words that a prompt must not have.

Pure: no I/O, any thread. It stops what is asked for by name, not what is written around it.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_OF_WORDS: Final = "LMN"
"""Unicode's letters, marks and numbers; everything else stands between words."""
_INVISIBLE: Final = "Cf"
"""Soft hyphens, joiners, directions: they would cut a word where nobody sees it."""


class NoWordError(ValueError):
    """An entry of a list has neither letter nor digit; the text is the entry."""


class RefusedWords:
    """Finds words and phrases in a text: whole ones, in any case and any form of their letters."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Takes words and phrases.

        Raises:
            NoWordError: one of them has neither letter nor digit.
        """
        self._phrases: dict[str, list[tuple[str, ...]]] = {}
        for entry in entries:
            words = tuple(_words(entry))
            if not words:
                raise NoWordError(entry)
            self._phrases.setdefault(words[0], []).append(words)

    def found_in(self, text: str) -> str | None:
        """Returns the first word or phrase of the list that is in ``text``, as it is compared."""
        words = _words(text)
        for start, word in enumerate(words):
            for phrase in self._phrases.get(word, ()):
                if tuple(words[start : start + len(phrase)]) == phrase:
                    return " ".join(phrase)
        return None


def _words(text: str) -> Sequence[str]:
    visible = "".join(c for c in text if unicodedata.category(c) != _INVISIBLE)
    # Folding may leave what composes anew: once more makes equal texts equal (Unicode, D145).
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return "".join(c if unicodedata.category(c)[0] in _OF_WORDS else " " for c in folded).split()
