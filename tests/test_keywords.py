"""The keywords of Python against the declaration of the request."""

from __future__ import annotations

import inspect
from enum import StrEnum
from typing import Literal, get_args, get_type_hints

import pytest

from hidream import keywords
from hidream.errors import InvalidInput
from hidream.keywords import FILES, OF_CLIENT, OF_PIPELINE, SIDES, Options
from hidream.parameter import Boolean, Choice, Integer, Number, Text
from hidream.request import BY_NAME

TYPES = {Text: str, Boolean: bool, Integer: int, Number: float}
BOTH = pytest.mark.parametrize("accepted", [OF_PIPELINE, OF_CLIENT], ids=["pipeline", "client"])


@pytest.fixture(scope="module")
def hints():
    names = vars(keywords) | {"ImageSource": object, "OneLora": object}  # texts, as Pillow is not imported
    return get_type_hints(Options, globalns=names, localns=names)


def test_each_parameter_is_a_keyword_but_the_prompt_and_those_of_http():
    of_http = {"enable_base64_output", "enable_sync_mode"}
    assert set(OF_CLIENT.names) == set(BY_NAME) - {"prompt"} - of_http | set(SIDES)
    assert len(set(OF_CLIENT.names)) == len(OF_CLIENT.names)


def test_a_pipeline_takes_what_decides_an_image_alone():
    assert set(OF_CLIENT.names) - set(OF_PIPELINE.names) == {"num_images", "output_format", "output_quality"}
    assert set(OF_PIPELINE.names) < set(OF_CLIENT.names)


def test_each_type_is_that_of_the_declaration(hints):
    for name in OF_CLIENT.names:
        kind, accepted = type(BY_NAME[name].kind if name in BY_NAME else keywords.SIDE), get_args(hints[name])
        assert type(None) in accepted, name
        if kind in TYPES:
            assert set(accepted) == {TYPES[kind], type(None)}, name
        elif kind is Choice:
            literal = next(each for each in accepted if type(each) is type(Literal["x"]))
            enumeration = next(each for each in accepted if isinstance(each, type) and issubclass(each, StrEnum))
            values = BY_NAME[name].kind.values
            assert set(get_args(literal)) == set(values), name
            assert set(enumeration) == set(values.values()), name
        else:
            assert all(name in each.forms for each in (OF_PIPELINE, OF_CLIENT)), f"{name} has forms of its own"


@BOTH
def test_values_of_enumerations_are_read(accepted):
    for name in accepted.names:
        if name in BY_NAME and isinstance(BY_NAME[name].kind, Choice):
            for value in BY_NAME[name].kind.values.values():
                assert isinstance(value, StrEnum)
                assert accepted.read({name: value}) == {name: value}


@BOTH
def test_help_lists_each_keyword_with_its_bounds_and_default(accepted):
    @accepted.documented
    def call(prompt, *, several=1, **options):
        """Call it."""

    text, signature = inspect.getdoc(call), inspect.signature(call)
    assert list(signature.parameters) == ["prompt", "several", *accepted.names]
    assert signature.parameters["strength"].default == 0.8
    assert signature.parameters["render"].default == "best"
    assert signature.parameters["seed"].default is None  # a random one
    assert text.startswith("Call it.\n\nsize\n    The size in pixels")
    assert all(f"\n{name}\n    " in text for name in accepted.names)
    described = " ".join(text.split())
    for name in set(accepted.names) - set(accepted.forms):
        assert BY_NAME[name].description in described
    assert "A number from 0.01 to 1." in text
    assert 'One of "flash", "unipc", "euler".' in text
    assert max(map(len, text.splitlines())) <= 84


@BOTH
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sed", "seed"),
        ("steps", "num_inference_steps"),
        ("num_steps", "num_inference_steps"),
        ("guidance", "guidance_scale"),
        ("generator", "seed, a whole number"),
        ("mask_image", "mask"),
    ],
)
def test_an_unknown_keyword_is_refused_with_the_name_that_was_meant(accepted, name, nearest):
    with pytest.raises(InvalidInput, match=rf"unknown keyword '{name}'; the nearest is ") as caught:
        accepted.read({name: 1})
    assert f"the nearest is {nearest}; accepted: {', '.join(accepted.names)}" in caught.value.message
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("accepted", "name", "nearest"),
    [
        (OF_PIPELINE, "output_format", 'the suffix in `image.save("fox.jpg")`'),
        (OF_PIPELINE, "callback_on_step_end", "`stream`, which yields the progress"),
        (OF_CLIENT, "format", "output_format"),
        (OF_CLIENT, "callback_on_step_end", "`Task.events`, which yields the progress"),
    ],
)
def test_what_only_one_of_them_has_is_named_by_that_one(accepted, name, nearest):
    with pytest.raises(InvalidInput) as caught:
        accepted.check_names({name: 1})
    assert f"unknown keyword '{name}'; the nearest is {nearest}; accepted" in caught.value.message


def test_a_keyword_like_no_other_is_refused_with_all_that_there_are():
    with pytest.raises(InvalidInput, match=r"unknown keyword 'qqq'; accepted: size, "):
        OF_PIPELINE.check_names({"size": 1, "qqq": 2})


def test_images_are_left_to_the_caller():
    images = dict.fromkeys(FILES, object())
    assert OF_CLIENT.read(images) == images
