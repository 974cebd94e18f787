"""The operator's word list: what it finds, and what it lets through."""

from __future__ import annotations

import pytest

from latentwire_server.requests.refused_words import NoWordError, RefusedWords

WORDS = RefusedWords(["Scunthorpe", "straße", "two words", "café", "ﬁre"])


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("in scunthorpe, at night", "scunthorpe"),
        ("SCUNTHORPE", "scunthorpe"),
        ("(scunthorpe:1.3)", "scunthorpe"),
        ("s\u00adcun\u200bthor\u2060pe", "scunthorpe"),
        ("\uff53\uff43unthorpe", "scunthorpe"),
        ("eine STRASSE", "strasse"),
        ("two-words", "two words"),
        ("a Two,  \n WORDS b", "two words"),
        ("cafe\u0301", "caf\u00e9"),
        ("CAFÉ_am_See", "caf\u00e9"),
        ("fire", "fire"),
    ],
)
def test_a_word_is_found_in_every_form_of_its_letters(prompt: str, found: str) -> None:
    assert WORDS.found_in(prompt) == found


@pytest.mark.parametrize(
    "prompt", ["", "scunthorpes", "prescunthorpe", "two other words", "words two", "cafe", "two"]
)
def test_a_part_of_a_word_or_phrase_does_not_match(prompt: str) -> None:
    assert WORDS.found_in(prompt) is None


def test_an_entry_without_a_letter_is_refused() -> None:
    with pytest.raises(NoWordError, match=r"\*\*\*"):
        RefusedWords(["fine", "***"])
