"""The process: models load as configured, and a hopeless start has its own exit status."""

import asyncio
import gc
import logging
import re

import numpy as np
import pytest

from hidream.errors import ConfigurationError
from hidream.model.checkpoint.checkpoint import embedded
from hidream.model.pipeline import generate
from hidream.request import ImageRequest
from hidream.settings.tables import Compute, Engine, Models, Outputs, Settings, Worker
from hidream.types import Mode, Size, Variant
from hidream.worker.bridge import Bridge
from hidream.worker.garbage import gc_frozen
from hidream.worker.main import NAMES, _load, _versions, run


@pytest.mark.parametrize("wrong", ["checkpoint", "memory", "variant", "place"])
def test_a_start_that_is_hopeless_says_why(tmp_path, caplog, wrong):
    nothing = tmp_path / "nothing"
    nothing.write_text("a file, and no folder") if wrong == "place" else None
    dev = Models(dev=embedded(Variant.DEV).folder)
    settings, said = {
        "checkpoint": (Settings(home=tmp_path, models=Models(dev=nothing)), str(nothing)),
        "memory": (Settings(home=tmp_path, compute=Compute(device="cpu", memory_gb=2.0)), "memory_gb is 2"),
        "variant": (Settings(home=tmp_path, models=dev, worker=Worker(serves="fast")), "configured for fast"),
        "place": (Settings(home=tmp_path, outputs=Outputs(url=str(nothing))), f"{nothing}"),
    }[wrong]
    with caplog.at_level(logging.ERROR):
        assert run(settings, with_parent=False) == ConfigurationError.exit_status
    assert said in caplog.text


@pytest.mark.slow
async def test_the_engines_draw_as_the_settings_say(tmp_path, caplog):
    """Images of nano's variants on the model thread: each is the library's."""
    engine = Engine(policy="fifo", tokens_per_step=5000, requests_max=3, memory_gb=0.75)
    settings = Settings(home=tmp_path, compute=Compute(device="cpu", dtype="float32"), engine=engine)
    dev = [ImageRequest("a red apple", Size(256, side), seed=side, steps=2) for side in (256, 384)]
    dev.append(ImageRequest("a blue house", Size(256, 256), seed=7, steps=6, mode=Mode.TURBO))
    asked = [(Variant.DEV, each) for each in dev]
    asked.append((Variant.FAST, ImageRequest("a green boat", Size(256, 256), seed=9, steps=2)))
    asked.append((Variant.FULL, ImageRequest("a red apple", Size(256, 256), seed=5, steps=3, negative_prompt="fog")))

    with caplog.at_level(logging.INFO):
        bridge, never = Bridge(), asyncio.Event()
        loaded = await bridge.run(lambda: _load(settings), never)
        for engine in loaded.engines.values():
            limits = engine.limits
            assert (limits.tokens, limits.memory_bytes, limits.requests) == (5000, 250_000_000, 3)
        bridge.set_engines({NAMES[variant]: engine for variant, engine in loaded.engines.items()})
        drawn = await asyncio.gather(
            *(bridge.generate(NAMES[variant], str(i), each, never) for i, (variant, each) in enumerate(asked))
        )
        await bridge.close()
    for variant in Variant:
        assert re.search(rf"engine_ready variant={variant} tokens=5000 memory_gb=0\.\d policy=fifo", caplog.text)
    for (variant, request), image in zip(asked, drawn, strict=True):
        assert np.array_equal(image.pixels, generate(loaded.models[variant], request).pixels)
        assert not loaded.checker.flagged(image.pixels)
    for variant, model in loaded.models.items():
        versions = _versions(model)
        assert versions == {mode: model.version_of(mode) for mode in Mode}
        assert len(set(versions.values())) == len(Mode)
        assert versions[Mode.EXACT].startswith(f"hidream-i1-{variant}/")


def test_what_is_loaded_is_never_looked_through():
    gc.unfreeze()
    try:
        with pytest.raises(ZeroDivisionError), gc_frozen():
            assert not gc.isenabled()
            raise ZeroDivisionError
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
