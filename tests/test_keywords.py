"""The keywords of Python against the declaration of the request."""

from __future__ import annotations

import inspect
from enum import StrEnum
from typing import Literal, get_args, get_type_hints

import pytest

from hidream import keywords
from hidream.errors import InvalidInput
from hidream.keywords import FORMS, NAMES, SIDES, Keywords, check_names, documented, parameters
from hidream.parameter import Choice, Flag, Number, Text, Whole
from hidream.request import BY_NAME

TYPES = {Text: str, Flag: bool, Whole: int, Number: float}


@pytest.fixture(scope="module")
def hints():
    names = vars(keywords) | {"ImageSource": object, "OneLora": object}  # texts, as Pillow and NumPy are not imported
    return get_type_hints(Keywords, globalns=names, localns=names)


def test_each_parameter_that_decides_an_image_is_a_keyword_and_nothing_else():
    declared = {parameter.name for parameter in parameters()}
    assert set(NAMES) == declared | set(SIDES)
    others = set(BY_NAME) - declared
    assert others == {"prompt", "num_images", *keywords.OF_HTTP, *keywords.OF_FILES}


def test_each_type_is_that_of_the_declaration(hints):
    for name in NAMES:
        kind, accepted = type(BY_NAME[name].kind if name in BY_NAME else keywords.SIDE), get_args(hints[name])
        assert type(None) in accepted, name
        if kind in TYPES:
            assert set(accepted) == {TYPES[kind], type(None)}, name
        elif kind is Choice:
            literal = next(each for each in accepted if type(each) is type(Literal["x"]))
            enumeration = next(each for each in accepted if isinstance(each, type) and issubclass(each, StrEnum))
            assert set(get_args(literal)) == set(BY_NAME[name].kind.values) == set(enumeration), name
        else:
            assert name in FORMS, f"{name} has forms of its own, which the help describes"


def test_help_lists_each_keyword_with_its_bounds_and_default():
    @documented
    def call(prompt, *, several=1, **options):
        """Call it."""

    text, signature = inspect.getdoc(call), inspect.signature(call)
    assert list(signature.parameters) == ["prompt", "several", *NAMES]
    assert signature.parameters["strength"].default == 0.8
    assert signature.parameters["render"].default == "best"
    assert signature.parameters["seed"].default is None  # a random one
    assert text.startswith("Call it.\n\nsize\n    The size in pixels")
    assert all(f"\n{name}\n    " in text for name in NAMES)
    assert "A number from 0.01 to 1." in text
    assert 'One of "flash", "unipc", "euler".' in text
    assert max(map(len, text.splitlines())) <= 84


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sed", "seed"),
        ("steps", "num_inference_steps"),
        ("num_steps", "num_inference_steps"),
        ("guidance", "guidance_scale"),
        ("generator", "seed, a whole number"),
        ("mask_image", "mask"),
        ("output_format", 'the suffix in `image.save("fox.jpg")`'),
        ("callback_on_step_end", "`stream`, which yields the progress"),
    ],
)
def test_an_unknown_keyword_is_refused_with_the_name_that_was_meant(name, nearest):
    with pytest.raises(InvalidInput, match=rf"unknown keyword '{name}'; the nearest is ") as caught:
        check_names({name: 1})
    assert f"the nearest is {nearest}; accepted: {', '.join(NAMES)}" in caught.value.message
    assert caught.value.field == name


def test_a_keyword_like_no_other_is_refused_with_all_that_there_are():
    with pytest.raises(InvalidInput, match=r"unknown keyword 'qqq'; accepted: size, "):
        check_names({"size": 1, "qqq": 2})
