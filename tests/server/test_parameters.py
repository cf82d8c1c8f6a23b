"""Every parameter: what is taken, what is assumed, and a clear word for everything else."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hidream.errors import InvalidInput, MissingInput
from hidream.server.parameters import RANDOM_SEEDS, V2, V3, parse
from hidream.types import ImageFormat, Size


def test_the_defaults_of_both_versions():
    v2, v3 = (parse({"prompt": "a house", "seed": 7}, api) for api in (V2, V3))
    assert dataclasses.asdict(v2) == {
        "prompt": "a house",
        "size": {"width": 1024, "height": 1024},
        "seed": 7,
        "enable_base64_output": True,
        "enable_safety_checker": True,
        "enable_sync_mode": False,
        "output_format": ImageFormat.PNG,
    }
    assert v3 == dataclasses.replace(v2, enable_base64_output=False, output_format=ImageFormat.JPEG)


def test_nulls_and_unknown_names_change_nothing():
    nulls = dict.fromkeys(
        [
            "size",
            "width",
            "height",
            "enable_base64_output",
            "enable_safety_checker",
            "enable_sync_mode",
            "output_format",
        ]
    )
    body = {"prompt": "a house", "seed": 7, "loras": [], "num_inference_steps": 28, "\ud800": 1}
    assert parse(body | nulls, V3) == parse({"prompt": "a house", "seed": 7}, V3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"size": "1024*768"}, Size(1024, 768)),
        ({"size": "1000x776"}, Size(1000, 776)),
        ({"size": " 513X1536 "}, Size(513, 1536)),
        ({"width": 640, "height": 512.0}, Size(640, 512)),
        ({"size": "600*700", "width": 640}, Size(600, 700)),
    ],
)
def test_sizes(given, expected):
    assert parse({"prompt": "a house"} | given, V2).size == expected


def test_v3_goes_down_to_256():
    assert parse({"prompt": "a house", "size": "256*256"}, V3).size == Size(256, 256)
    with pytest.raises(InvalidInput, match="512 to 1536"):
        parse({"prompt": "a house", "size": "256*256"}, V2)


@pytest.mark.parametrize("seed", [None, -1, -1.0])
def test_a_random_seed_is_settled_here(seed):
    seeds = {parse({"prompt": "a house", "seed": seed}, V3).seed for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= drawn < RANDOM_SEEDS for drawn in seeds)


@pytest.mark.parametrize("seed", [0, 7.0, 9_999_999_999])
def test_seeds(seed):
    assert parse({"prompt": "a house", "seed": seed}, V2).seed == seed


def test_the_longest_prompt():
    assert len(parse({"prompt": "x" * 10_000}, V3).prompt) == 10_000


BAD = [
    ("prompt", None, "prompt is absent"),
    ("prompt", "", "prompt is empty"),
    ("prompt", " \n\t ", "prompt is empty"),
    ("prompt", "x" * 10_001, "prompt has 10001 characters; accepted: a text of 1 to 10000"),
    ("prompt", 5, "prompt is 5"),
    ("prompt", ["a"], "prompt is"),
    ("prompt", "a\0b", r"prompt has '\x00' at 1"),
    ("prompt", "a\ud83d", r"prompt has '\ud83d' at 1"),
    ("size", "10*10", "size is '10*10'; accepted: width*height, each 512 to 1536"),
    ("size", "2000*2000", "size is '2000*2000'"),
    ("size", "1024*10", "size is '1024*10'"),
    ("size", "abc", "size is 'abc'"),
    ("size", "", "size is ''"),
    ("size", "1024", "size is '1024'"),
    ("size", "1024*1024*1024", "size is"),
    ("size", "-1024*1024", "size is"),
    ("size", "١٠٢٤*1024", "size is"),
    ("size", 1024, "size is 1024"),
    ("size", [1024, 1024], "size is"),
    ("width", 1024, "height is absent"),
    ("height", 1024, "width is absent"),
    ("seed", -2, "seed is -2; accepted: a whole number from -1 to 9999999999"),
    ("seed", 10_000_000_000, "seed is 10000000000"),
    ("seed", "7", "seed is '7'"),
    ("seed", True, "seed is True"),
    ("seed", 7.5, "seed is 7.5"),
    ("seed", 1e300, "seed is"),
    ("seed", [], "seed is"),
    ("enable_base64_output", "true", "enable_base64_output is 'true'; accepted: true or false"),
    ("enable_safety_checker", 1, "enable_safety_checker is 1"),
    ("enable_sync_mode", 0.0, "enable_sync_mode is 0.0"),
    ("output_format", "gif", "output_format is 'gif'; accepted: png, jpeg, jpg, webp"),
    ("output_format", "PNG", "output_format is 'PNG'"),
    ("output_format", {}, "output_format is {}"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=lambda value: f"{value!r:.30}")
def test_what_is_not_accepted_is_named(name, value, message):
    with pytest.raises(InvalidInput) as caught:
        parse({"prompt": "a house"} | {name: value}, V2)
    assert message in caught.value.message
    assert len(caught.value.message) < 300


def test_a_missing_prompt_has_a_code_of_its_own():
    with pytest.raises(MissingInput):
        parse({}, V2)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = ["prompt", "size", "width", "height", "seed", "enable_base64_output", "enable_sync_mode", "output_format"]


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_nothing_but_invalid_input_comes_of_any_json(body):
    try:
        accepted = parse(body, V3)
    except InvalidInput as error:
        error.message.encode()
    else:
        assert type(accepted).from_json(accepted.to_json()) == accepted
