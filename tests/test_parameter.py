"""Kinds of parameters: what each reads and describes, and its errors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import pytest

from hidream.errors import InvalidInput, MissingInput
from hidream.parameter import Boolean, Choice, Integer, Number, Parameter, Text, declared, in_words


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


COLOURS = Choice(Colour, {"red": Colour.RED, "rouge": Colour.RED, "blue": Colour.BLUE})


@dataclass(frozen=True)
class Declared:
    first: Annotated[int, Parameter(Integer(1, 9), "From {smallest} to {largest}.", name="one", default=3)]
    plain: int = 0
    colour: Annotated[Colour, Parameter(COLOURS, "Which.")] = Colour.BLUE
    none: Annotated[float | None, Parameter(Number(0, 1), "Perhaps.")] = None
    flag: Annotated[bool, Parameter(Boolean(), "Whether.")] = False


def test_a_declaration_is_collected_with_names_and_defaults():
    found = declared(Declared)
    assert [(each.attribute, each.name, each.default) for each in found] == [
        ("first", "one", 3),
        ("colour", "colour", Colour.BLUE),
        ("none", "none", None),
        ("flag", "flag", False),
    ]


def test_schemas_have_bounds_description_and_default():
    first, colour, none, flag = declared(Declared)
    assert first.schema() == {
        "type": "integer",
        "minimum": 1,
        "maximum": 9,
        "description": "From 1 to 9.",
        "default": 3,
    }
    assert first.schema(Integer(2, 5), 4)["description"] == "From 2 to 5."
    assert (colour.schema()["enum"], colour.schema()["default"]) == (["red", "rouge", "blue"], "blue")
    assert "default" not in none.schema()
    assert flag.schema()["default"] is False


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        (Integer(1, 9), 7.0, 7),
        (Number(0, 1), 1, 1.0),
        (Boolean(), False, False),
        (COLOURS, "rouge", Colour.RED),
        (Text(3), "", ""),
        (Text(3, may_be_empty=False), "ab ", "ab "),
    ],
)
def test_what_is_accepted_is_read(kind, value, read):
    found = kind.read("it", value)
    assert (found, type(found)) == (read, type(read))
    assert kind.from_json(kind.to_json(found)) == found


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Integer(1, 9), True, "it[2].x is True; accepted: a whole number from 1 to 9"),
        (Integer(1, 9), 10, "it[2].x is 10; accepted: a whole number from 1 to 9"),
        (Number(0.5, 1), float("nan"), "it[2].x is nan; accepted: a number from 0.5 to 1"),
        (Boolean(), 1, "it[2].x is 1; accepted: true or false"),
        (COLOURS, ["red"], "it[2].x is ['red']; accepted: red, rouge, blue"),
        (Text(3), "abcd", "it[2].x has 4 characters; accepted: up to 3 characters"),
        (Text(3, what="a short word"), 5, "it[2].x is 5; accepted: a short word"),
        (Text(3), "a\0", "it[2].x has '\\x00' at 1; accepted: up to 3 characters, no NUL and no lone surrogate"),
    ],
)
def test_an_error_says_field_value_and_what_is_accepted_and_carries_the_field(kind, value, message):
    with pytest.raises(InvalidInput) as caught:
        kind.read("it[2].x", value)
    assert caught.value.message == message
    assert (caught.value.field, caught.value.parameter) == ("it[2].x", "it")


def test_an_empty_text_is_a_missing_one():
    with pytest.raises(MissingInput, match=r"^it is empty; accepted: a text of 1 to 3 characters$"):
        Text(3, may_be_empty=False).read("it", " ")


def test_lists_in_words():
    assert [in_words(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert in_words("ab", "or") == "a or b"
