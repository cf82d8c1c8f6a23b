"""Every parameter: what is accepted, the defaults, and the errors."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hidream.errors import InvalidInput, MissingInput
from hidream.request import BY_NAME, LoraUse
from hidream.server.parameters import V2, V3, moment, parse, sources
from hidream.types import RANDOM_SEEDS, Conformance, ImageFormat, Mode, Render, Sampler, Size, Variant

DEV, FULL, FAST = Variant.DEV, Variant.FULL, Variant.FAST

EXTRAS = {
    "negative_prompt": "fog",
    "num_inference_steps": 12,
    "guidance_scale": 3.5,
    "shift": 2,
    "sampler": "euler",
    "conformance": "official",
    "render": "native",
    "mode": "turbo",
    "loras": [{"name": "ink", "scale": 0.5}, {"path": "acme/water"}],
    "num_images": 3,
    "output_quality": 80,
    "strength": 0.25,
}
"""What v3 takes beyond the documents."""


def asked(variant=FULL, api=V3, **body):
    return parse({"prompt": "a house", "seed": 7} | body, api, variant)


def test_the_defaults_of_both_versions():
    v2, v3 = (parse({"prompt": "a house", "seed": 7}, api, DEV) for api in (V2, V3))
    assert dataclasses.asdict(v2) == {
        "prompt": "a house",
        "size": {"width": 1024, "height": 1024},
        "seed": 7,
        "enable_base64_output": True,
        "enable_safety_checker": True,
        "enable_sync_mode": False,
        "output_format": ImageFormat.PNG,
        "negative_prompt": "",
        "steps": None,
        "guidance": None,
        "shift": None,
        "sampler": None,
        "conformance": Conformance.DIFFUSERS,
        "render": Render.BEST,
        "mode": Mode.EXACT,
        "loras": (),
        "num_images": 1,
        "output_quality": None,
        "image": None,
        "strength": 0.8,
        "mask": None,
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
            *EXTRAS,
        ]
    )
    body = {"prompt": "a house", "seed": 7, "num_images": 1, "max_images": 1, "scheduler": 3, "\ud800": 1}
    for api in (V2, V3):
        assert parse(body | nulls, api, FULL) == parse({"prompt": "a house", "seed": 7}, api, FULL)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"size": "1024*768"}, Size(1024, 768)),
        ({"size": "1000x776"}, Size(1000, 776)),
        ({"size": " 513X1536 "}, Size(513, 1536)),
        ({"width": 640, "height": 512.0}, Size(640, 512)),
        ({"size": "600*700", "width": 640}, Size(600, 700)),
        ({"width": 640, "height": 512, "target_size": {"width": 600, "height": 700}}, Size(640, 512)),
    ],
)
def test_sizes(given, expected):
    assert parse({"prompt": "a house"} | given, V2, DEV).size == expected


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ("1:1", Size(1024, 1024)),
        ("auto", Size(1024, 1024)),
        ("16:9", Size(1360, 768)),
        (" 9:16 ", Size(768, 1360)),
        ("4:3", Size(1184, 880)),
        ("1920:1080", Size(1360, 768)),
        ("21:9", Size(1536, 656)),
        ("6:1", Size(1536, 256)),
        ("1:6", Size(256, 1536)),
    ],
)
def test_aspect_ratios(ratio, expected):
    assert asked(aspect_ratio=ratio).size == expected
    assert asked(aspect_ratio=ratio, size="256*512").size == Size(256, 512)
    assert asked(aspect_ratio=ratio, width=256, height=512).size == Size(256, 512)
    assert asked(aspect_ratio=ratio, api=V2).size == Size(1024, 1024)


@given(st.integers(1, 9999), st.integers(1, 9999))
def test_every_ratio_gives_a_size_or_is_refused(across, down):
    try:
        size = asked(aspect_ratio=f"{across}:{down}").size
    except InvalidInput:
        assert max(across, down) > 6 * min(across, down)
    else:
        assert all(256 <= side <= 1536 and side % 16 == 0 for side in (size.width, size.height))
        assert size.width * size.height <= 1.05 * 1024 * 1024
        assert abs(size.width / size.height * down / across - 1) < 0.06


def test_an_empty_text_is_absent_on_v3():
    empty = dict.fromkeys(("size", "seed", "output_format", "enable_sync_mode", "aspect_ratio", "width", "height"), "")
    assert parse({"prompt": "a", "seed": 7} | empty | {"seed": 7}, V3, DEV) == parse(
        {"prompt": "a", "seed": 7}, V3, DEV
    )
    assert parse({"prompt": "a"} | empty, V3, DEV).seed >= 0


@pytest.mark.parametrize("said", [{"size": "256*2048"}, {"width": 256, "height": 2048}])
def test_v3_takes_sides_that_v2_does_not(said):
    assert parse({"prompt": "a house"} | said, V3, DEV).size == Size(256, 2048)
    with pytest.raises(InvalidInput, match="512 to 1536"):
        parse({"prompt": "a house"} | said, V2, DEV)


@pytest.mark.parametrize("size", ["1792x1024", "1024*1792", "2048*2048"])
def test_v3_takes_what_clients_of_openai_ask_for(size):
    assert str(parse({"prompt": "a house", "size": size}, V3, DEV).size) == size.replace("x", "*")
    with pytest.raises(InvalidInput, match="each 256 to 2048"):
        parse({"prompt": "a house", "size": "2049*1024"}, V3, DEV)


def test_hugging_faces_clients_say_a_target_size():
    assert asked(target_size={"width": 256, "height": 320.0}).size == Size(256, 320)
    assert asked(target_size={"width": 256, "height": 320}, aspect_ratio="1:1").size == Size(256, 320)
    assert asked(target_size={"width": 512, "height": 512}, api=V2).size == Size(1024, 1024)


@pytest.mark.parametrize(
    ("said", "decides"),
    [
        ({}, True),
        ({"aspect_ratio": "auto", "size": None, "width": ""}, True),
        ({"aspect_ratio": "1:1"}, False),
        ({"size": "512*512"}, False),
        ({"target_size": {"width": 512, "height": 512}}, False),
    ],
)
def test_an_image_decides_the_size_that_is_not_said(said, decides):
    assert sources(said | {"image": "…"}, V3).sizes is decides
    assert sources(said, V3).sizes is False
    assert sources(said | {"image": "…"}, V2).sizes is False


@pytest.mark.parametrize("seed", [None, -1, -1.0])
def test_a_random_seed_is_settled_here(seed):
    seeds = {parse({"prompt": "a house", "seed": seed}, V3, DEV).seed for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= drawn < RANDOM_SEEDS for drawn in seeds)


@pytest.mark.parametrize("seed", [0, 7.0, 9_999_999_999])
def test_seeds(seed):
    assert parse({"prompt": "a house", "seed": seed}, V2, DEV).seed == seed


def test_the_longest_prompt():
    assert len(parse({"prompt": "x" * 10_000}, V3, DEV).prompt) == 10_000


def test_what_is_said_about_the_drawing_is_kept():
    assert asked(**EXTRAS) == dataclasses.replace(
        asked(),
        negative_prompt="fog",
        steps=12,
        guidance=3.5,
        shift=2.0,
        sampler=Sampler.EULER,
        conformance=Conformance.OFFICIAL,
        render=Render.NATIVE,
        mode=Mode.TURBO,
        loras=(LoraUse("ink", 0.5), LoraUse("acme/water", 1.0)),
        num_images=3,
        output_quality=80,
        strength=0.25,
    )


@pytest.mark.parametrize(
    ("name", "smallest", "largest"),
    [
        ("num_inference_steps", 1, 200),
        ("guidance_scale", 0, 30),
        ("shift", 0.1, 100),
        ("num_images", 1, 4),
        ("output_quality", 1, 100),
        ("strength", 0.01, 1),
    ],
)
def test_the_ends_of_the_ranges_are_accepted(name, smallest, largest):
    for value in (smallest, largest):
        assert getattr(asked(**{name: value}), BY_NAME[name].attribute) == value


def test_v2_does_not_know_it():
    nonsense = {name: [None, {"no": "sense"}] for name in EXTRAS}
    for body in (EXTRAS, nonsense):
        assert asked(api=V2, **body) == asked(api=V2)


@pytest.mark.parametrize("variant", [DEV, FAST])
def test_distilled_variants_pass_over_guidance_and_negative_prompts(variant):
    guided = {"guidance_scale": 3.5, "negative_prompt": "fog"}
    assert asked(variant, **guided) == asked(variant)
    assert asked(variant, **EXTRAS) == asked(variant, **{k: v for k, v in EXTRAS.items() if k not in guided})


def test_nothing_given_means_nothing_asked():
    assert asked(**dict.fromkeys(EXTRAS, "") | {"loras": []}) == asked()
    assert asked(loras="") == asked()
    assert asked(loras=[{"name": "ink", "path": None, "scale": None}]).loras == (LoraUse("ink", 1.0),)


# What each client sends by itself (facts/wavespeed-api.md, from their sources at the versions named there).
CLIENTS = {
    "PyPI wavespeed-mcp 0.1.27": {
        "loras": [],
        "size": "1024*1024",
        "num_inference_steps": 28,
        "guidance_scale": 3.5,
        "num_images": 1,
        "max_images": 1,
        "seed": -1,
        "enable_base64_output": False,
    },
    "huggingface_hub 2.4.0": {
        "negative_prompt": None,
        "height": 512,
        "width": 512,
        "steps": None,
        "guidance": None,
        "scheduler": None,
    },
    "langchain-wavespeed 0.1.3": {"resolution": "1k", "aspect_ratio": "1:1"},
    "wavespeed-comfyui 6b1425b": {"size": "1000*776", "seed": 5554226022, "enable_base64_output": False},
    "wavespeed-cli 1.3.5": {"model": "wavespeed-ai/hidream-i1-dev"},
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("variant", Variant)
def test_no_clients_own_defaults_are_an_error(client, variant):
    accepted = parse({"prompt": "a house"} | CLIENTS[client], V3, variant)
    assert accepted.guidance == (CLIENTS[client].get("guidance_scale") if variant is FULL else None)


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
    ("output_format", "gif", "output_format is 'gif'; accepted: png, jpeg, jpg, webp, avif"),
    ("output_format", "PNG", "output_format is 'PNG'"),
    ("output_format", {}, "output_format is {}"),
]


BAD_EXTRAS = [
    ("num_inference_steps", 0, "num_inference_steps is 0; accepted: a whole number from 1 to 200"),
    ("num_inference_steps", 201, "num_inference_steps is 201"),
    ("num_inference_steps", 2.5, "num_inference_steps is 2.5"),
    ("num_inference_steps", "28", "num_inference_steps is '28'"),
    ("num_inference_steps", True, "num_inference_steps is True"),
    ("num_inference_steps", [], "num_inference_steps is []"),
    ("guidance_scale", -0.1, "guidance_scale is -0.1; accepted: a number from 0 to 30"),
    ("guidance_scale", 30.1, "guidance_scale is 30.1"),
    ("guidance_scale", "3.5", "guidance_scale is '3.5'"),
    ("guidance_scale", False, "guidance_scale is False"),
    ("guidance_scale", float("inf"), "guidance_scale is inf"),
    ("guidance_scale", float("nan"), "guidance_scale is nan"),
    ("guidance_scale", 10**400, "guidance_scale is 1000"),
    ("shift", 0, "shift is 0; accepted: a number from 0.1 to 100"),
    ("shift", 101, "shift is 101"),
    ("shift", {}, "shift is {}"),
    ("sampler", "dpm", "sampler is 'dpm'; accepted: flash, unipc, euler"),
    ("sampler", ["euler"], "sampler is ['euler']"),
    ("sampler", "Euler", "sampler is 'Euler'"),
    ("conformance", "comfy", "conformance is 'comfy'; accepted: diffusers, official"),
    ("conformance", 1, "conformance is 1"),
    ("render", "huge", "render is 'huge'; accepted: best, scaled, native, refine, reference"),
    ("render", {}, "render is {}"),
    ("mode", "fast", "mode is 'fast'; accepted: exact, balanced, turbo"),
    ("mode", True, "mode is True"),
    ("negative_prompt", 5, "negative_prompt is 5; accepted: up to 10000 characters"),
    ("negative_prompt", "x" * 10_001, "negative_prompt has 10001 characters"),
    ("negative_prompt", "a\0b", r"negative_prompt has '\x00' at 1"),
    ("loras", "ink", "loras is 'ink'; accepted: a list of up to 8 objects"),
    ("loras", {"name": "ink"}, "loras is {'name': 'ink'}"),
    ("loras", [{"name": "ink"}] * 9, "loras has 9 entries; accepted: a list of up to 8 objects"),
    ("loras", ["ink"], "loras[0] is 'ink'; accepted: an object"),
    ("loras", [{"name": "ink"}, {}], "loras[1] has no name"),
    ("loras", [{"path": "", "scale": 1}], "loras[0] has no name"),
    ("loras", [{"name": 5}], "loras[0].name is 5; accepted: the name of a configured LoRA"),
    ("loras", [{"name": "a\ud83d"}], r"loras[0].name has '\ud83d' at 1"),
    ("loras", [{"name": "ink", "scale": 10.5}], "loras[0].scale is 10.5; accepted: a number from -10 to 10"),
    ("loras", [{"name": "ink", "scale": "1"}], "loras[0].scale is '1'"),
    ("num_images", 0, "num_images is 0; accepted: a whole number from 1 to 4"),
    ("num_images", 5, "num_images is 5"),
    ("num_images", "2", "num_images is '2'"),
    ("output_quality", 0, "output_quality is 0; accepted: a whole number from 1 to 100"),
    ("output_quality", 101, "output_quality is 101"),
    ("strength", 0, "strength is 0; accepted: a number from 0.01 to 1"),
    ("strength", 1.5, "strength is 1.5"),
    ("aspect_ratio", "wide", "aspect_ratio is 'wide'; accepted: W:H in whole numbers, from 1:6 to 6:1, or auto"),
    ("aspect_ratio", "7:1", "aspect_ratio is '7:1'"),
    ("aspect_ratio", "0:0", "aspect_ratio is '0:0'"),
    ("aspect_ratio", "1:0", "aspect_ratio is '1:0'"),
    ("aspect_ratio", 1.5, "aspect_ratio is 1.5"),
    ("aspect_ratio", "١:١", "aspect_ratio is"),
    ("target_size", "512*512", "target_size is '512*512'; accepted: an object"),
    ("target_size", {"width": 512}, "target_size.height is absent; accepted"),
    ("target_size", {"width": 512, "height": 2049}, "target_size.height is 2049; accepted: a whole number from 256"),
    ("target_size", {"width": "512", "height": 512}, "target_size.width is '512'"),
]


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize(("name", "value", "message"), BAD_EXTRAS, ids=lambda value: f"{value!r:.30}")
def test_what_is_not_accepted_of_v3_is_named_even_where_it_would_be_passed_over(name, value, message, variant):
    with pytest.raises(InvalidInput) as caught:
        asked(variant, **{name: value})
    assert caught.value.message.startswith(message)
    assert "accepted" in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.parameter == name
    assert caught.value.message.startswith(caught.value.field)


@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=lambda value: f"{value!r:.30}")
def test_what_is_not_accepted_is_named(name, value, message):
    with pytest.raises(InvalidInput) as caught:
        parse({"prompt": "a house"} | {name: value}, V2, DEV)
    assert message in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.parameter == message.split(" ")[0]


def test_a_missing_prompt_has_a_code_of_its_own():
    with pytest.raises(MissingInput):
        parse({}, V2, DEV)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = [
    "prompt",
    "size",
    "width",
    "height",
    "seed",
    "enable_base64_output",
    "enable_sync_mode",
    "output_format",
    *EXTRAS,
]
LORAS = st.lists(st.fixed_dictionaries({}, optional={"name": VALUES, "path": VALUES, "scale": VALUES}), max_size=3)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES | LORAS))
def test_nothing_but_invalid_input_comes_of_any_json(body):
    try:
        accepted = parse({"prompt": "a house"} | body, V3, FULL)
    except InvalidInput as error:
        error.message.encode()
    else:
        assert type(accepted).from_json(json.loads(json.dumps(accepted.to_json()))) == accepted


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("2026-11-22T18:00:00Z", 1_795_370_400_000),
        ("2026-11-22T18:00:00.25Z", 1_795_370_400_250),
        ("2026-11-22T18:00:00.250Z", 1_795_370_400_250),
        ("2026-11-22T18:00:00.250000Z", 1_795_370_400_250),
        ("2026-11-22T18:00:00.250000123Z", 1_795_370_400_250),
        ("2026-11-22T19:30:00.25+01:30", 1_795_370_400_250),
        ("2026-11-22T18:00:00", 1_795_370_400_000),
        ("2026-11-22", 1_795_305_600_000),
        ("", None),
        (None, None),
    ],
)
def test_moments_in_every_clients_way_of_writing_them(text, expected_ms):
    assert moment("created_after", text) == expected_ms


@pytest.mark.parametrize("value", ["now", "2026-11-22T25:00:00Z", 5, True, [], "x" * 500])
def test_moments_that_are_none(value):
    with pytest.raises(InvalidInput, match=r"^created_after is .*accepted: a time such as"):
        moment("created_after", value)
