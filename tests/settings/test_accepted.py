"""What a setting accepts: both ends of a range and nothing beyond; only whole matches of a pattern."""

from __future__ import annotations

import pytest

from hidream.settings.accepted import Pattern, Range


@pytest.mark.parametrize(
    ("accepted", "held", "refused"),
    [
        (Range(1, 5), (1, 2.5, 5), (0, 0.999, 5.001, -1)),
        (Range(1, 5, or_zero=True), (0, -0.0, 1, 5), (0.5, -1, 6)),
        (Range(0, 1000), (0, 1000), (-0.001, 1001)),
    ],
)
def test_numbers_are_held_up_to_both_ends(accepted, held, refused):
    assert all(accepted.holds(number) for number in held)
    assert not any(accepted.holds(number) for number in (*refused, float("nan"), float("inf"), float("-inf")))


@pytest.mark.parametrize(
    ("accepted", "words"),
    [
        (Range(1, 100_000), "1 to 100,000"),
        (Range(0.01, 5, or_zero=True), "0, or 0.01 to 5"),
        (Pattern("a|b", "a or b"), "a or b"),
    ],
)
def test_what_is_accepted_is_said_in_words(accepted, words):
    assert str(accepted) == words


def test_a_pattern_is_for_all_of_a_text_in_ascii():
    assert Pattern(r"on|off", "on or off").holds("off")
    assert Pattern(r"\w+", "a word").holds("word_1")
    for text in ("", "o", "on ", "on\n", " on", "onoff", "ON"):
        assert not Pattern(r"on|off", "on or off").holds(text)
    assert not Pattern(r"\w+", "a word").holds("wörd")
