"""The peers of the benchmarks: what makes a comparison void, and that the stock pipeline generates our images."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import stock
import torch
from measure import interleaved
from pipeline import OURS, SAME_IMAGE_DB, Side, note, psnr, row, seen_of_ours

import comfyui
from hidream.model.loading import load
from hidream.model.pipeline import generate
from hidream.request import ImageRequest
from hidream.types import Size, Variant

SEEN = stock.Seen((1, 16, 16, 16), 16, 28, torch.float32)
PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def side(seconds=1.0, seen=SEEN, pixels=PIXELS, kind=stock.SPEED_UPS["diffusers"]):
    drawn = stock.Drawn(dict.fromkeys(stock.STAGES, seconds / 4), pixels, seen)
    return Side(lambda request: drawn, kind, warm_up_s=61.0, runs=[drawn] * 3, cpu_s=[seconds] * 3)


def test_a_side_that_computed_something_else_is_void():
    for change in ({"steps": 27}, {"text_tokens": 128}, {"latent": (1, 16, 32, 32)}, {"dtype": torch.bfloat16}):
        assert note(side(seen=dataclasses.replace(SEEN, **change)), SEEN, math.inf).startswith("void: Seen(")
    assert note(side(), SEEN, math.inf) == ""


def test_an_exact_side_that_draws_another_image_is_void_and_a_lossy_one_is_not():
    lossy = side(kind=stock.SPEED_UPS["diffusers, TaylorSeer 2"])
    assert note(side(), SEEN, SAME_IMAGE_DB - 1).startswith("void: ")
    assert note(lossy, SEEN, SAME_IMAGE_DB - 1) == "lossy"


def test_a_row_compares_each_round_with_itself():
    sides = {"diffusers": side(3.0), "diffusers, torch.compile": side(2.0), OURS: side(1.0)}
    cells = row("diffusers, torch.compile", sides)
    assert (cells["× diffusers"], cells["ours ×"], cells["PSNR dB"]) == ("1.50", "2.00", "same")
    compiles = dataclasses.replace(sides["diffusers, torch.compile"], kind=stock.SpeedUp(stock.plain, compiles=True))
    assert note(compiles, SEEN, math.inf) == "compiled in 59 s"


def test_psnr_is_of_the_largest_value():
    assert psnr(PIXELS, PIXELS) == math.inf
    assert psnr(PIXELS, PIXELS + 1) == pytest.approx(20 * math.log10(255))
    assert psnr(PIXELS + 1, PIXELS) == psnr(PIXELS, PIXELS + 1)  # not lost where uint8 would wrap


def test_the_stock_pipeline_draws_what_ours_draws():
    model, request = load(Variant.DEV), ImageRequest("flat style a fox in the snow", Size(256, 256), seed=3)
    drawn = stock.Stock(Variant.DEV, model, stock.SPEED_UPS["diffusers"])(request)
    steps: list[int] = []
    image = generate(model, request, lambda step: steps.append(step.done))
    assert drawn.seen == seen_of_ours(model, request, len(steps))
    assert psnr(drawn.pixels, image.pixels) > SAME_IMAGE_DB
    assert set(drawn.seconds) == set(stock.STAGES)
    assert min(drawn.seconds.values()) > 0


def test_a_folder_that_is_no_comfyui_is_named(tmp_path):
    with pytest.raises(ImportError, match=re.escape(f"{tmp_path} has no comfy/ldm/hidream/model.py")):
        comfyui.comfyui_transformer(tmp_path, {}, {}, torch.device("cpu"))
    assert comfyui.version(tmp_path) == "unknown"
    (tmp_path / "comfyui_version.py").write_text('# made by the build\n__version__ = "0.3.64"\n')
    assert comfyui.version(tmp_path) == "0.3.64"


def test_sides_take_turns_and_warm_up_uncounted():
    calls: list[str] = []
    ticks = iter(range(100))
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = interleaved(sides, rounds=2, warm_up=1, clock=lambda: float(next(ticks)))
    assert calls == ["a", "b"] * 3
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_a_turn_of_several_calls_starts_with_one_that_is_not_counted():
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = interleaved(sides, rounds=1, warm_up=0, clock=lambda: float(len(calls) ** 2), repeats=3)
    assert calls == ["a"] * 4 + ["b"] * 4
    assert seconds == {"a": [(4**2 - 1**2) / 3], "b": [(8**2 - 5**2) / 3]}


def test_every_script_is_run_by_make_bench():
    folder = Path(__file__).parents[2] / "benchmarks"
    scripts = {path.stem for path in folder.glob("*.py") if "__main__" in path.read_text()}
    named = re.search(r"for script in ([^;]+);", (folder / "run.sh").read_text())
    assert named
    assert scripts == set(named[1].split())
