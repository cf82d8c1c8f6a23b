"""Warnings about fields without effect: misspelt names, names of another version, and those a model lacks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_parameters import CLIENTS, EXTRAS, VALUES

from hidream.errors import InvalidInput
from hidream.server import schema
from hidream.server.parameters import V2, V3, parse
from hidream.server.unused import NAMED_MAX, of_submission
from hidream.types import Variant

DEV, FULL, FAST = Variant.DEV, Variant.FULL, Variant.FAST


def told(api=V3, variant=FULL, query=None, **body):
    body = {"prompt": "a house"} | body
    model = f"wavespeed-ai/hidream-i1-{variant}"
    return of_submission(body, query or {}, api, model, variant, parse(body, api, variant))


@pytest.mark.parametrize(
    ("name", "value", "suggested"),
    [
        ("seeed", 7, "seed"),
        ("Seed", 7, "seed"),
        ("promt", "a", "prompt"),
        ("num_inference_step", 9, "num_inference_steps"),
        ("steps", 9, "num_inference_steps"),
        ("n", 2, "num_images"),
        ("max_images", 2, "num_images"),
        ("resolution", "1k", "size"),
        ("scheduler", "euler", "sampler"),
        ("guidance", 3, "guidance_scale"),
        ("enable_safety_cheker", False, "enable_safety_checker"),
        ("webhok", "https://receiver.example", "webhook"),
        ("something", {"else": 1}, None),
        ("x" * 10_000, 1, None),
    ],
)
def test_a_name_that_nobody_knows_is_told_with_what_was_probably_meant(name, value, suggested):
    for api in (V2, V3):
        (warning,) = told(api, **{name: value})
        assert warning.startswith(f"{name} is not a parameter of /api/{api.name}") or len(name) > 60
        assert len(warning) < 200
        if api.extras or suggested in schema.submission(V2, FULL)["properties"]:
            assert warning.endswith(f"; did you mean {suggested}?" if suggested else "was ignored")


def test_names_that_cannot_be_written_down_are_told_in_ascii():
    for name in ("\ud800", "a\0b", "é", "two words"):
        (warning,) = told(**{name: 1})
        assert warning.startswith(ascii(name))
        assert warning.isprintable()


def test_many_unknown_names_are_counted():
    warnings = told(**{f"unknown_{i}": i for i in range(10_000)})
    assert len(warnings) == NAMED_MAX + 1
    assert warnings[-1].startswith(f"and {10_000 - NAMED_MAX} more names")


@pytest.mark.parametrize("name", [*EXTRAS, "aspect_ratio", "image", "mask", "target_size"])
def test_v2_says_what_only_v3_has(name):
    value = EXTRAS.get(name, "something")
    assert told(V2, **{name: value}) == (f"{name} was ignored: it is a parameter of /api/v3, not of /api/v2",)


@pytest.mark.parametrize("api", [V2, V3])
@pytest.mark.parametrize("variant", Variant)
def test_what_asks_for_nothing_is_not_mentioned(api, variant):
    properties = schema.submission(V3, FULL)["properties"] | {"seeed": {}, "model": {}}
    for empty in (None, "", [], {}):
        for name in properties.keys() - {"prompt"}:
            try:
                assert not told(api, variant, **{name: empty})
            except InvalidInput:
                assert empty is not None
    defaults = {name: described["default"] for name, described in properties.items() if "default" in described}
    assert len(defaults) > 8
    for name, default in defaults.items():
        assert not told(api, variant, **{name: default})


@pytest.mark.parametrize("variant", [DEV, FAST])
def test_distilled_models_say_that_they_have_no_guidance(variant):
    for said in (
        {"guidance_scale": 3.5},
        {"negative_prompt": "fog"},
        {"guidance_scale": 3.5, "negative_prompt": "fog"},
    ):
        warnings = told(variant=variant, **said)
        assert [warning.partition(" ")[0] for warning in warnings] == list(said)
        assert all("distilled" in warning for warning in warnings)
    assert not told(variant=variant, guidance_scale=1)
    assert not told(**EXTRAS | {"strength": None})


def test_a_negative_prompt_needs_guidance():
    (warning,) = told(negative_prompt="fog", guidance_scale=1)
    assert warning.startswith("negative_prompt has no effect with a guidance_scale of 1")


@pytest.mark.parametrize(
    ("said", "ignored"),
    [
        ({"size": "600*700", "width": 640}, ["width"]),
        ({"size": "600*700", "width": 640, "height": 640}, ["width", "height"]),
        ({"size": "600*700", "width": 600, "height": 700}, []),
        ({"size": "600*700", "aspect_ratio": "16:9"}, ["aspect_ratio"]),
        ({"size": "640*360", "aspect_ratio": "16:9"}, []),
        ({"size": "640*360", "aspect_ratio": "auto"}, []),
        ({"width": 600, "height": 700, "target_size": {"width": 600, "height": 640}}, ["target_size.height"]),
        ({"target_size": {"width": 600, "height": 640, "depth": 3}}, ["depth"]),
        ({"strength": 0.5}, ["strength"]),
        ({"strength": 0.5, "image": "…"}, []),
        ({"output_quality": 50, "output_format": "png"}, ["output_quality"]),
        ({"output_quality": 50, "output_format": "webp"}, []),
        ({"loras": [{"name": "ink"}, {"name": "ink", "weight": 2, "sclae": 2}]}, ["weight", "sclae"]),
        ({"loras": [{"name": "ink", "path": "water", "scale": 1}]}, ["loras[0].path"]),
        ({"loras": [{"name": "ink", "path": "ink"}]}, []),
        ({"webhook": "https://a.example", "webhook_url": "https://b.example"}, ["webhook_url"]),
        ({"webhook": "https://a.example", "webhook_url": "https://a.example"}, []),
        ({"model": "flux"}, ["model"]),
        ({"model": "hidream-i1-full"}, []),
    ],
)
def test_what_something_else_makes_void_is_told(said, ignored):
    assert [warning.partition(" ")[0] for warning in told(**said)] == ignored


def test_the_urls_own_parameters():
    (warning,) = told(query={"webook": "https://receiver.example"})
    assert warning == "webook is not a parameter of the URL and was ignored; did you mean webhook?"
    assert not told(query={"webhook": "https://receiver.example"})
    (warning,) = told(query={"webhook": "https://a.example"}, webhook="https://b.example")
    assert warning.startswith("webhook was ignored: ?webhook=")


@pytest.mark.parametrize("client", CLIENTS)
def test_what_clients_send_by_themselves(client):
    told_of = {warning.partition(" ")[0] for warning in told(variant=DEV, **CLIENTS[client])}
    assert told_of <= {"max_images", "guidance_scale", "resolution", "model"}


@given(st.dictionaries(st.sampled_from([*EXTRAS, "size", "width", "seeed", "target_size"]) | st.text(), VALUES))
def test_whatever_is_accepted_can_be_told_of(body):
    for api in (V2, V3):
        try:
            parse({"prompt": "a house"} | body, api, FULL)
        except InvalidInput:
            continue
        assert all(warning.isprintable() for warning in told(api, **body))
