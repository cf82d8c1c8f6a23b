"""A memory plan, carried out: the image is the same wherever the parts are."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch

from hidream.errors import ConfigurationError
from hidream.model.checkpoint.checkpoint import embedded
from hidream.model.loading import load, load_planned, plan_model
from hidream.model.memory import plan_input
from hidream.model.memory.candidates import Hardware, Options, Placement
from hidream.model.memory.footprint import BLOCKS, ENCODERS, MODULATIONS, VAE, ModelShape
from hidream.model.memory.plan import Part, Plan, plan
from hidream.model.memory.plan_input import PlanRequest
from hidream.model.pipeline import generate
from hidream.request import ImageRequest
from hidream.types import Size, Step, Variant, WeightFormat

CARD = torch.device("cpu:1")  # to torch another device than "cpu", so that parts really move
REQUEST = ImageRequest("cartoon a fox in the snow", Size(256, 256), seed=4, steps=2)
PLANNED = PlanRequest(Variant.DEV, Size(512, 512), None, torch.float32)
D, TURN, STREAM, HOST = Placement.DEVICE, Placement.SEQUENTIAL, Placement.STREAMED, Placement.HOST


@pytest.fixture(scope="module")
def roomy(dev) -> Plan:
    """The plan for a machine with plenty of everything."""
    shape = ModelShape.of(dev.transformer.config, dev.text.encoders, dev.vae.module, dev.vae.factor)
    options = Options.of(Variant.DEV, Size(512, 512))
    return plan(Hardware.card(24, 64), shape, options)


def placed(base: Plan, places: dict[str, Placement], **changes: object) -> Plan:
    """Another plan, whose parts live elsewhere."""
    parts = tuple(Part(p.name, p.storage, places.get(p.name, p.placement), p.nbytes) for p in base.parts)
    return dataclasses.replace(base, parts=parts, **changes)


@pytest.mark.parametrize(
    ("places", "changes", "away"),
    [
        ({}, {}, []),
        pytest.param(dict.fromkeys(ENCODERS, TURN), {}, [], marks=pytest.mark.slow),
        pytest.param(dict.fromkeys(ENCODERS, HOST), {}, [], marks=pytest.mark.slow),
        ({BLOCKS: TURN, MODULATIONS: STREAM, "transformer.captions": STREAM, VAE: TURN}, {}, None),
        ({BLOCKS: STREAM, MODULATIONS: STREAM, "transformer.captions": STREAM}, {"resident": (0, 3)}, [0, 3]),
    ],
)
def test_every_placement_draws_the_same_image(dev, roomy, places, changes, away):
    answer = placed(roomy, places, **changes)
    model = load_planned(answer, embedded(Variant.DEV), PLANNED, CARD, "digest", compiled=False)
    weights = [lambda block=block: block.attn1.to_q.weight for block in model.transformer.blocks]
    home = [weight() for weight in weights]
    away = list(range(len(home))) if away is None else away  # None: every block

    def on_step(step: Step) -> None:
        assert [i for i, weight in enumerate(weights) if weight() is not home[i]] == away

    expected = generate(dev, REQUEST).pixels
    for _ in range(2):  # what came has gone home again
        difference = np.abs(generate(model, REQUEST, on_step).pixels.astype(float) - expected)
        assert difference.max() <= 1  # of 255: matrix products of separate weights round differently
        assert all(weight() is at_home for weight, at_home in zip(weights, home, strict=True))


def test_tiles_draw_nearly_the_same_image(dev, roomy):
    answer = dataclasses.replace(roomy, tile_px=128)
    model = load_planned(answer, embedded(Variant.DEV), PLANNED, CARD, "digest", compiled=False)
    difference = np.abs(generate(model, REQUEST).pixels.astype(float) - generate(dev, REQUEST).pixels)
    assert 0 < difference.mean() < 5  # of 255, at the seams


def test_too_little_memory_is_said_with_what_would_do():
    with pytest.raises(ConfigurationError, match=r"does not fit.*accepted"):
        load(Variant.DEV, memory_gb=0.01)


def test_the_plan_is_logged_with_its_reasons(caplog):
    with caplog.at_level(logging.INFO, plan_input.logger.name):
        load(Variant.DEV)
    assert "transformer in compute" in caplog.text


def test_storage_is_part_of_the_version(dev):
    model = load(Variant.DEV, storage="int8")
    assert model.version.split("/")[3] == "cpu-float32-int8"
    assert model.version.split("/")[1] == dev.version.split("/")[1]
    with pytest.raises(ConfigurationError, match="int3"):
        load(Variant.DEV, storage="int3")
    assert model.transformer.blocks[0].attn1.to_q.quantized.scheme == WeightFormat.INT8


def test_a_planned_model_is_loaded_as_often_as_it_is_wanted(dev, tmp_path):
    planned = plan_model(Variant.DEV, device="cpu")
    assert not list(tmp_path.iterdir())
    first = planned.load(tmp_path / "hashes.json")
    expected = generate(first, REQUEST).pixels
    del first
    second = planned.load(tmp_path / "hashes.json")
    assert second.version == dev.version
    assert np.array_equal(generate(second, REQUEST).pixels, expected)


def test_a_plan_reads_no_weights(tmp_path):
    with pytest.raises(ConfigurationError, match="does not fit"):
        plan_model(Variant.DEV, device="cpu", memory_gb=0.01)
