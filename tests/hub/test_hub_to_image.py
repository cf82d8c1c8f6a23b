"""Nano as if it were published on the Hub: downloaded, found, loaded, and the same image to the last byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import DEV, LLAMA, TOKEN

import hidream as package
from hub_cache import nano_files

pytestmark = pytest.mark.integration

NANO = Path(package.__file__).parent / "nano" / "dev"
DRAW = ("generate", "a fox in the snow", "--size", "256*256", "--steps", "2", "--seed", "7", "--device", "cpu")


def test_the_downloaded_model_generates_the_image_of_the_embedded_one(hub, hidream):
    official, llama = nano_files(NANO)
    hub.add(DEV, official)
    hub.add(LLAMA, llama, gated=True)
    named = {"HIDREAM_MODEL": DEV}
    _, err = hidream.run(*DRAW, status=1, **named)
    assert "`hidream models pull dev`" in err

    hidream.run("models", "pull", "dev", "--yes")
    _, err = hidream.run(*DRAW, status=1, **named)
    assert "do not include Llama-3.1-8B-Instruct: run `hidream models pull llama`" in err

    hidream.run("models", "pull", "llama", "--yes", HF_TOKEN=TOKEN)
    before = len(hub.requests)
    theirs, ours = hidream.folder / "theirs.png", hidream.folder / "ours.png"
    _, err = hidream.run(*DRAW, "-v", "--out", str(theirs), **named)
    assert "llama_in_the_cache" in err
    hidream.run(*DRAW, "--out", str(ours))
    assert theirs.read_bytes() == ours.read_bytes()
    assert len(hub.requests) == before, "a network is used by `models` alone"
