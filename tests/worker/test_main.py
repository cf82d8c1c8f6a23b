"""The process: what is loaded draws as the settings say, and a start that is hopeless says so in its exit status."""

import asyncio
import logging
import re

import numpy as np
import pytest

from hidream.errors import ConfigurationError
from hidream.model.pipeline import generate
from hidream.settings import Compute, Engine, Models, Settings
from hidream.types import ImageRequest, Mode, Size
from hidream.worker.bridge import Bridge
from hidream.worker.main import _load, run


@pytest.mark.parametrize("wrong", ["checkpoint", "memory"])
def test_a_start_that_is_hopeless_says_why(tmp_path, caplog, wrong):
    nothing = tmp_path / "nothing"
    settings, said = {
        "checkpoint": (Settings(home=tmp_path, models=Models(dev=nothing)), str(nothing)),
        "memory": (Settings(home=tmp_path, compute=Compute(device="cpu", memory_gb=2.0)), "memory_gb is 2"),
    }[wrong]
    with caplog.at_level(logging.ERROR):
        assert run(settings, with_parent=False) == ConfigurationError.exit_status
    assert said in caplog.text


def test_the_engine_draws_as_the_settings_say(tmp_path, caplog):
    """Two pictures of nano on the model thread, in one step: each is the library's."""
    engine = Engine(policy="fifo", tokens_per_step=5000, requests_max=3, memory_gb=0.5)
    settings = Settings(home=tmp_path, compute=Compute(device="cpu", dtype="float32"), engine=engine)
    requests = [ImageRequest("a red apple", Size(256, side), seed=side, steps=2) for side in (256, 384)]
    requests.append(ImageRequest("a blue house", Size(256, 256), seed=7, steps=6, mode=Mode.TURBO))

    async def scenario():
        bridge, never = Bridge(), asyncio.Event()
        model, engine, tools = await bridge.run(lambda: _load(settings), never)
        limits = engine.limits
        assert (limits.tokens, limits.memory_bytes, limits.requests) == (5000, 500_000_000, 3)
        bridge.drive(engine)
        drawn = await asyncio.gather(*(bridge.draw(str(i), each, never) for i, each in enumerate(requests)))
        await bridge.close()
        return model, tools, drawn

    with caplog.at_level(logging.INFO):
        model, tools, drawn = asyncio.run(scenario())
    assert re.search(r"engine_ready tokens=5000 memory_gb=0\.5 policy=fifo", caplog.text)
    for request, picture in zip(requests, drawn, strict=True):
        assert np.array_equal(picture.pixels, generate(model, request).pixels)
        assert not tools.flagged(picture.pixels)
    assert tools.versions == {mode: model.version_of(mode) for mode in Mode}
    assert len(set(tools.versions.values())) == len(Mode)
