"""From keywords to a request: every form of a value, and errors that name field, value and what is accepted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hidream.errors import InvalidInput, MissingInput
from hidream.library.requests import Reader
from hidream.request import PARAMETERS, ImageRequest, LoraUse, Prompts
from hidream.types import DEFAULT_SIZE, Conformance, Mode, Render, Sampler, Size, Variant

READER = Reader(Variant.FULL)


def read(prompt="a fox", **options) -> ImageRequest:
    return READER.read(prompt, options)


def test_every_keyword_reaches_its_field():
    image = PIL.Image.new("RGB", (300, 280))
    values = {
        "size": Size(640, 512),
        "seed": 7,
        "negative_prompt": "red",
        "num_inference_steps": 12,
        "guidance_scale": 3,
        "image": image,
        "strength": 0.5,
        "mask": image,
        "loras": [("ink", 0.5)],
        "sampler": "euler",
        "shift": 2,
        "conformance": "official",
        "render": Render.NATIVE,
        "mode": "turbo",
        "enable_safety_checker": False,
    }
    request = read(**values)
    defaults = read(seed=8)
    of_delivery = ("enable_base64_output", "enable_sync_mode", "output_format", "output_quality", "num_images")
    for parameter in PARAMETERS:
        differs = getattr(request, parameter.attribute) != getattr(defaults, parameter.attribute)
        assert differs is (parameter.name in values), parameter.name
        assert differs or parameter.name in ("prompt", *of_delivery)
    assert (request.size, request.guidance, request.steps) == (Size(640, 512), 3.0, 12)
    assert (request.sampler, request.conformance, request.mode) == (Sampler.EULER, Conformance.OFFICIAL, Mode.TURBO)
    assert request.image[:4] == b"\x89PNG"


def test_none_is_the_same_as_nothing():
    assert read(seed=7, size=None, image=None, loras=None, strength=None, num_inference_steps=None) == read(seed=7)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, DEFAULT_SIZE),
        ({"size": "640x512"}, Size(640, 512)),
        ({"size": "640*512"}, Size(640, 512)),
        ({"size": (640, 512)}, Size(640, 512)),
        ({"size": [640, 512]}, Size(640, 512)),
        ({"size": np.array([640, 512])}, None),
        ({"size": (np.int64(640), np.int32(512))}, Size(640, 512)),
        ({"size": Size(640, 512)}, Size(640, 512)),
        ({"width": 640, "height": 512}, Size(640, 512)),
        ({"image": PIL.Image.new("L", (640, 512))}, Size(640, 512)),
        ({"image": PIL.Image.new("L", (64, 32))}, Size(512, 256)),
        ({"image": PIL.Image.new("L", (640, 512)), "size": "256x256"}, Size(256, 256)),
    ],
)
def test_sizes(options, size):
    if size is None:
        with pytest.raises(InvalidInput, match="accepted: a text such as"):
            read(**options)
    else:
        assert read(**options).size == size


@pytest.mark.parametrize(
    ("given", "uses"),
    [
        ("ink", [LoraUse("ink")]),
        (("ink", 0.8), [LoraUse("ink", 0.8)]),
        (("ink", np.float32(0.5)), [LoraUse("ink", 0.5)]),
        ({"ink": 0.8, "glow": -1}, [LoraUse("ink", 0.8), LoraUse("glow", -1.0)]),
        ({"name": "ink", "scale": 0.8}, [LoraUse("ink", 0.8)]),
        ({"path": "ink"}, [LoraUse("ink")]),
        (LoraUse("ink", 2.0), [LoraUse("ink", 2.0)]),
        (["ink", ("glow", 0.5), {"a": 1}], [LoraUse("ink"), LoraUse("glow", 0.5), LoraUse("a")]),
        (("ink", "glow"), [LoraUse("ink"), LoraUse("glow")]),
        ((("ink", 0.5),), [LoraUse("ink", 0.5)]),
        ([], []),
        (Path("/loras/ink.v2.safetensors"), [LoraUse("ink.v2")]),
        (("/loras/../loras/ink.safetensors", 0.5), [LoraUse("ink", 0.5)]),
    ],
)
def test_loras(given, uses):
    assert list(Reader(Variant.DEV, lora_folder=Path("/loras")).read("a fox", {"loras": given}).loras) == uses


def test_numbers_of_numpy_are_numbers():
    request = read(seed=np.int64(7), strength=np.float32(0.5), num_inference_steps=np.uint8(9))
    assert (request.seed, request.strength, request.steps) == (7, 0.5, 9)
    assert type(request.seed) is int


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"size": "1024"}, "size", "size is '1024'; accepted: width*height, each 256 to 2048, such as 1024*1024"),
        ({"size": 1024}, "size", 'size is 1024; accepted: a text such as "1024x1024", or (width, height)'),
        ({"size": (1024,)}, "size", "size is (1024,); accepted: a text"),
        ({"size": (10.5, 20)}, "size", "size is (10.5, 20); accepted: a text"),
        ({"size": (64, 64)}, "size", "size is '64*64'; accepted: width*height, each 256 to 2048"),
        ({"size": "512x512", "width": 512}, "size", "size and width are given; accepted: one of the two"),
        ({"width": 512}, "height", "height is absent; accepted: width and height together, or size"),
        ({"width": 512, "height": 99}, "height", "height is 99; accepted: a whole number from 256 to 2048"),
        ({"seed": "7"}, "seed", "seed is '7'; accepted: a whole number from -1 to 9999999999"),
        ({"seed": True}, "seed", "seed is True; accepted"),
        ({"seed": -2}, "seed", "seed is -2; accepted"),
        ({"strength": 2}, "strength", "strength is 2; accepted: a number from 0.01 to 1"),
        ({"num_inference_steps": 0}, "num_inference_steps", "num_inference_steps is 0; accepted: a whole number"),
        ({"guidance_scale": "high"}, "guidance_scale", "guidance_scale is 'high'; accepted: a number from 0 to 30"),
        ({"sampler": "heun"}, "sampler", "sampler is 'heun'; accepted: flash, unipc, euler"),
        ({"render": 7}, "render", "render is 7; accepted: best, scaled"),
        ({"enable_safety_checker": "no"}, "enable_safety_checker", "is 'no'; accepted: true or false"),
        ({"negative_prompt": 7}, "negative_prompt", "negative_prompt is 7; accepted: up to 10000 characters"),
        ({"mask": b"x"}, "mask", "mask is given without an image"),
        ({"image": 7}, "image", "image is 7; accepted: a PIL image"),
        ({"image": b"no image"}, "", "image is not an image that can be read"),
        ({"loras": 7}, "loras", 'loras is 7; accepted: "name", ("name", 0.8), {"name": 0.8}, or a list of these'),
        ({"loras": ["ink", 0.8]}, "loras", "loras is 0.8; accepted"),
        ({"loras": ("ink", 99)}, "loras[0].scale", "loras[0].scale is 99; accepted: a number from -10 to 10"),
        ({"loras": ["a"] * 9}, "loras", "loras has 9 entries; accepted: a list of up to 8 objects"),
        (
            {"loras": "/elsewhere/ink.safetensors"},
            "loras",
            "loras names the file '/elsewhere/ink.safetensors'; accepted",
        ),
        ({"steps": 7}, "steps", "unknown keyword 'steps'; the nearest is num_inference_steps"),
    ],
)
def test_errors_name_the_field_the_value_and_what_is_accepted(options, field, message):
    with pytest.raises(InvalidInput) as caught:
        read(**options)
    assert message in caught.value.message
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("prompt", "field", "message"),
    [
        ("", "prompt", "prompt is empty"),
        (None, "prompt", "prompt is None; accepted: a text of 1 to 10000 characters"),
        (["a fox"], "prompt", "prompt is ['a fox']; accepted: a text"),
        ("x" * 10_001, "prompt", "prompt has 10001 characters"),
        ("a\0b", "prompt", "prompt has '\\x00' at 1"),
        (Prompts("", clip_l="a fox"), "prompt", "prompt is empty"),
        (Prompts("a fox", t5=7), "prompt.t5", "prompt.t5 is 7; accepted: up to 10000 characters"),
    ],
)
def test_prompts_that_are_none(prompt, field, message):
    with pytest.raises(InvalidInput) as caught:
        read(prompt)
    assert message in caught.value.message
    assert caught.value.field == field
    assert isinstance(caught.value, MissingInput) is (message == "prompt is empty")
