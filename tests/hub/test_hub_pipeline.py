"""`hidream.Pipeline` by the id of a model: nano as if it were published, from the cache, and after a download."""

from __future__ import annotations

import json
from pathlib import Path

import hub_server
import pytest
from hub_server import DEV, LLAMA, TOKEN

import hidream as package
from hub_cache import nano_files, put

pytestmark = pytest.mark.integration

NANO = Path(package.__file__).parent / "nano" / "dev"
PROGRAM = """
import json
import hidream

def draw(*model, **arguments):
    pipe = hidream.Pipeline.from_pretrained(*model, device="cpu", **arguments)
    image = pipe("a fox", seed=7, size="256x256", render="native", num_inference_steps=2)
    return [str(pipe.variant), image.pixels.tobytes().hex()]

nano = draw()
"""


def drawn(hidream, code: str):
    """What a program of a user prints last."""
    return json.loads(hub_server.python(PROGRAM + code, hidream.environ))


def test_an_id_in_the_cache_is_that_model_without_a_network(hub, hidream):
    official, llama = nano_files(NANO)
    put(hidream.cache, DEV, official)
    put(hidream.cache, LLAMA, llama)
    code = f"print(json.dumps([nano == draw({DEV!r}), nano == draw({DEV!r}, revision='main')]))"
    assert drawn(hidream, code) == [True, True]
    assert hub.requests == []


def test_an_id_is_downloaded_only_where_that_is_wanted(hub, hidream):
    official, llama = nano_files(NANO)
    hub.add(DEV, official)
    hub.add(LLAMA, llama, gated=True)
    code = f"""
try:
    draw({DEV!r})
except hidream.errors.CheckpointError as error:
    refused = str(error)
downloaded = draw({DEV!r}, llama={LLAMA!r}, local_files_only=False, token={TOKEN!r})
print(json.dumps([refused, downloaded == nano, draw({DEV!r}) == nano]))
"""
    refused, downloaded_is_nano, cached_is_nano = drawn(hidream, code)
    assert "`hidream models pull dev` downloads it" in refused
    assert downloaded_is_nano
    assert cached_is_nano
    assert len(hub.bodies("transformer/diffusion_pytorch_model.safetensors")) == 1
