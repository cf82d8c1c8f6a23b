"""The inputs of "Generate on a server" are the parameters of the API."""

import pytest
from loaded_nodes import module

from hidream.errors import InvalidInput
from hidream.keywords import FILES, OF_CLIENT
from hidream.request import BY_NAME

ORDER = [
    "prompt",
    "model",
    "negative_prompt",
    "width",
    "height",
    "seed",
    "num_images",
    "output_format",
    "output_quality",
    "num_inference_steps",
    "guidance_scale",
    "strength",
    "loras",
    "sampler",
    "shift",
    "conformance",
    "render",
    "mode",
    "enable_safety_checker",
]
"""Saved workflows have the values of widgets in this order: a new parameter goes to its end."""


@pytest.fixture
def inputs(standin):
    schema = module("remote.generate").GenerateNode.define_schema()
    return {each.id: each for each in schema.inputs}


def test_every_parameter_of_the_client_is_an_input(inputs):
    assert inputs.keys() - {"server", "prompt", "model"} == set(OF_CLIENT.names) - {"size"}


def test_saved_workflows_keep_their_meaning(inputs):
    assert [name for name, each in inputs.items() if each.kind not in ("HIDREAM_SERVER", "IMAGE", "MASK")] == ORDER


def test_bounds_and_choices_are_the_declarations(inputs):
    seed, steps, sampler, render = (inputs[name] for name in ("seed", "num_inference_steps", "sampler", "render"))
    assert (seed.min, seed.max, seed.default, seed.control_after_generate) == (-1, 9_999_999_999, -1, True)
    assert (steps.min, steps.max, steps.default) == (0, BY_NAME["num_inference_steps"].kind.largest, 0)
    assert (sampler.options, sampler.default) == (["default", "flash", "unipc", "euler"], "default")
    assert render.options[0] == render.default == "best"
    assert inputs["output_format"].options == ["png", "jpeg", "webp", "avif"]
    assert (inputs["guidance_scale"].min, inputs["guidance_scale"].default) == (-1.0, -1.0)
    assert all(each.tooltip for name, each in inputs.items() if name != "server")
    assert [inputs[name].optional for name in FILES] == [True, True]


def test_defaults_are_not_sent(inputs):
    """So that a server with fewer parameters, such as the hosted API, gets what it knows."""
    values = {name: each.default for name, each in inputs.items() if name not in ("server", "prompt", "model", *FILES)}
    given = module("remote.parameters").keywords(values)
    assert given == {"width": 1024, "height": 1024}
    assert OF_CLIENT.read(given)["size"].width == 1024


def test_other_values_are_sent(inputs):
    values = {
        "negative_prompt": "rain",
        "width": 0,
        "height": 0,
        "seed": 0,
        "num_inference_steps": 4,
        "guidance_scale": 0.0,
        "sampler": "euler",
        "enable_safety_checker": False,
        "loras": "ink:0.5\n\n paper \nC:/a",
    }
    given = module("remote.parameters").keywords({**values, "loras": "ink:0.5\n\n paper "})
    assert given == {
        "negative_prompt": "rain",
        "seed": 0,
        "num_inference_steps": 4,
        "guidance_scale": 0.0,
        "sampler": "euler",
        "enable_safety_checker": False,
        "loras": [("ink", 0.5), ("paper", 1.0)],
    }
    with pytest.raises(InvalidInput, match=r"loras is 'C:/a'; accepted: NAME or NAME:WEIGHT"):
        module("remote.parameters").keywords(values)


def test_one_side_alone_is_refused(inputs):
    with pytest.raises(InvalidInput, match="height is absent"):
        OF_CLIENT.read(module("remote.parameters").keywords({"width": 512, "height": 0}))


def test_a_random_seed_is_another_one_each_time(standin):
    node = module("remote.generate").GenerateNode
    assert node.fingerprint_inputs(seed=-1) != node.fingerprint_inputs(seed=-1)
    assert node.fingerprint_inputs(seed=7) == node.fingerprint_inputs(seed=7)
