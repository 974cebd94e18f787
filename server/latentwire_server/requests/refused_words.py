"""The operator's list of words that no prompt may contain.

Pure: no I/O, any thread. It stops what is asked for by name, not what is paraphrased.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_OF_WORDS: Final = "LMN"
"""Unicode's letters, marks and numbers; everything else separates words."""
_INVISIBLE: Final = "Cf"
"""Soft hyphens, joiners, directions: they would split a word invisibly."""


class NoWordError(ValueError):
    """An entry of the list has neither letter nor digit; the text is the entry."""


class RefusedWords:
    """Finds whole words and phrases in a text, in any case and any Unicode form."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Prepares the words and phrases.

        Raises:
            NoWordError: One of them has neither letter nor digit.
        """
        self._phrases: dict[str, list[tuple[str, ...]]] = {}
        for entry in entries:
            words = tuple(_words(entry))
            if not words:
                raise NoWordError(entry)
            self._phrases.setdefault(words[0], []).append(words)

    def found_in(self, text: str) -> str | None:
        """Returns the first entry of the list that is in ``text``, in the form that is compared."""
        words = _words(text)
        for start, word in enumerate(words):
            for phrase in self._phrases.get(word, ()):
                if tuple(words[start : start + len(phrase)]) == phrase:
                    return " ".join(phrase)
        return None


def _words(text: str) -> Sequence[str]:
    visible = "".join(c for c in text if unicodedata.category(c) != _INVISIBLE)
    # Folding may leave letters that compose anew: normalizing twice makes equal texts equal
    # (Unicode, D145).
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return "".join(c if unicodedata.category(c)[0] in _OF_WORDS else " " for c in folded).split()
