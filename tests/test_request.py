"""Requests: the row keeps all of a request, and rows of earlier releases remain readable."""

import dataclasses
import json

import pytest

from hidream.errors import InvalidInput
from hidream.request import ImageRequest, LoraUse
from hidream.types import Conformance, ImageFormat, Mode, Render, Sampler, Size

PLAIN = ImageRequest("a house", Size(512, 768), 7, True, True, False, ImageFormat.WEBP)
RICH = dataclasses.replace(
    PLAIN,
    enable_safety_checker=False,
    enable_sync_mode=True,
    negative_prompt="Nebel “am Meer” 🏠",
    steps=12,
    guidance=4.5,
    shift=2.0,
    sampler=Sampler.EULER,
    conformance=Conformance.OFFICIAL,
    render=Render.NATIVE,
    mode=Mode.TURBO,
    loras=(LoraUse("ink", -0.5), LoraUse("water")),
    num_images=3,
    output_quality=90,
    image="upload.png",
    strength=0.5,
    mask="mask.png",
)
FIRST_RELEASE = {
    "prompt": "a house",
    "size": "512*768",
    "seed": 7,
    "enable_base64_output": True,
    "enable_safety_checker": True,
    "enable_sync_mode": False,
    "output_format": "webp",
}


def test_every_field_of_the_rich_one_differs_from_its_default():
    for f in dataclasses.fields(ImageRequest):
        assert f.default is dataclasses.MISSING or getattr(RICH, f.name) != f.default, f.name


@pytest.mark.parametrize("submission", [PLAIN, RICH])
def test_json_keeps_all_of_it(submission):
    text = json.dumps(submission.to_json())
    again = ImageRequest.from_json(json.loads(text))
    assert again == submission
    for f in dataclasses.fields(ImageRequest):
        assert type(getattr(again, f.name)) is type(getattr(submission, f.name)), f.name


def test_the_row_has_the_names_and_forms_of_the_api():
    assert RICH.to_json()["loras"] == [{"name": "ink", "scale": -0.5}, {"name": "water", "scale": 1.0}]
    assert json.loads(json.dumps(RICH.to_json()))["sampler"] == "euler"
    assert PLAIN.to_json().items() >= FIRST_RELEASE.items()


def test_a_row_of_the_first_release_is_read():
    assert ImageRequest.from_json(FIRST_RELEASE) == PLAIN


def test_a_row_of_a_release_with_wider_bounds_is_read_and_not_generated():
    """A listing shows it; the worker fails it alone."""
    row = PLAIN.to_json() | {"num_inference_steps": 9999, "loras": [{"name": "ink", "scale": 99.0}]}
    read = ImageRequest.from_json(row)
    assert read.to_json() == row
    with pytest.raises(InvalidInput, match="steps is 9999"):
        dataclasses.replace(read, num_images=1)


def test_a_row_of_a_release_with_more_parameters_is_not_read_as_another_request():
    with pytest.raises(AttributeError, match="sharpness"):
        ImageRequest.from_json(PLAIN.to_json() | {"sharpness": 1})


def test_what_it_costs_is_pixels_times_steps():
    assert (PLAIN.pixels, PLAIN.work("wavespeed-ai/hidream-i1-dev")) == (512 * 768, 512 * 768 * 28)
    assert PLAIN.work("wavespeed-ai/hidream-i1-full") == 512 * 768 * 50
    assert PLAIN.work("wavespeed-ai/hidream-i1-fast") == 512 * 768 * 16
    assert PLAIN.work("another's") == 512 * 768 * 28
    assert (RICH.pixels, RICH.work("another's")) == (3 * 512 * 768, 3 * 512 * 768 * 12)
