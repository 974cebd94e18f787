"""Parsing of prompt weights; the cases are those of Automatic1111's documentation."""

from __future__ import annotations

import time

import pytest

from latentwire_server.models.text.prompt_weights import (
    MAX_DEPTH,
    BracketsTooDeepError,
    chunked,
    weighted_texts,
)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("un)balanced]", [("un)balanced]", 1.0)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        (r"a\\b \c", [(r"a\b c", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("(word:1.3)", [("word", 1.3)]),
        ("(word : .5 )", [("word ", 0.5)]),
        ("(word:-2)", [("word", -2.0)]),
        ("time: 10:30) (a:b)", [("time: 10:30) ", 1.0), ("a:b", 1.1)]),
        ("(version:1.2.3)", [("version:1.2.3", 1.1)]),
        ("[on]", [("on", 1 / 1.1)]),
        ("([mis)nested]", [("mis", 1.1 / 1.1), ("nested", 1 / 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.3 * 1.1 * 1.1),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.1**4),
                (".", 1.1),
            ],
        ),
    ],
)
def test_brackets_set_the_weight_of_their_text(
    prompt: str, expected: list[tuple[str, float]]
) -> None:
    parts = weighted_texts(prompt)
    assert [part.text for part in parts] == [text for text, _ in expected]
    assert [part.weight for part in parts] == pytest.approx([weight for _, weight in expected])


def test_deep_nesting_is_refused_and_long_prompts_are_parsed_quickly() -> None:
    weighted_texts("(" * MAX_DEPTH)
    with pytest.raises(BracketsTooDeepError):
        weighted_texts("a(" * (MAX_DEPTH + 1))
    started = time.process_time()
    weighted_texts("(" * (MAX_DEPTH - 1) + "(a)" * 10_000)
    assert time.process_time() - started < 1


def test_chunks_are_filled_one_after_the_other() -> None:
    tokens, weights = [1, 2, 3, 4, 5], [1.0, 1.0, 2.0, 2.0, 1.0]
    assert chunked(tokens, weights, size=2, num_chunks=4) == [
        ([1, 2], [1.0, 1.0]),
        ([3, 4], [2.0, 2.0]),
        ([5], [1.0]),
        ([], []),
    ]
