"""The bfloat16 copy: close to the transformer, shares what it can, exists only where it is measurably faster."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import tiny
import torch

from hidream.model.network import bfloat16, matmul
from hidream.model.network.lora import layers
from hidream.model.pipeline import generate
from hidream.request import ImageRequest
from hidream.types import Mode, Size


def test_the_copy_answers_nearly_the_same():
    model = tiny.ours(tiny.reference())
    x = tiny.inputs(1, 8, 8)
    copy = bfloat16.copy_of(model)
    with torch.inference_mode():
        exact = model(*x)
        rough = copy(*(value.bfloat16() if i != 1 else value for i, value in enumerate(x)))
    assert rough.dtype is torch.bfloat16
    assert (rough.float() - exact).norm() < 0.05 * exact.norm()
    assert layers(copy).keys() == layers(model).keys()  # LoRAs find what they change


def test_weights_in_bfloat16_are_shared():
    model = tiny.ours(tiny.reference(), kernels=tiny.SEPARATE).bfloat16()
    copy = bfloat16.copy_of(model)
    pairs = zip(model.parameters(), copy.parameters(), strict=True)
    assert all(own.data_ptr() == other.data_ptr() for own, other in pairs)


@pytest.mark.parametrize(("slow_s", "faster"), [(0.5, False), (0.0, True)])
def test_it_is_measured(monkeypatch, slow_s, faster):
    """A CPU without bfloat16, as a clock that runs on while it multiplies."""
    clock = [0.0]

    def multiply(x, weight, bias):
        clock[0] += 0.01 if x.dtype is torch.float32 else slow_s
        return x

    monkeypatch.setattr(matmul, "ONEDNN_DTYPES", (torch.float32, torch.bfloat16))
    monkeypatch.setattr(matmul, "onednn", multiply)
    monkeypatch.setattr(bfloat16.time, "process_time", lambda: clock[0])
    assert bfloat16.is_faster() is faster


@pytest.mark.integration
def test_a_cpu_without_avx512_draws_all_the_same(tmp_path):
    """oneDNN, told to take this CPU for one with AVX2 only, refuses bfloat16."""
    modes = [["--mode", "turbo", "--out", "turbo.png"], ["--dtype", "bfloat16", "--out", "bfloat16.png"]]
    code = f"import sys; from hidream.cli import main; sys.exit(any(main([*sys.argv[1:], *mode]) for mode in {modes}))"
    draw = [sys.executable, "-c", code, "generate", "a cat", "--size", "256*256", "--steps", "2"]
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "HIDREAM_HOME": str(tmp_path)}
    done = subprocess.run(draw, env=environment, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert {path.name for path in tmp_path.glob("*.png")} == {"turbo.png", "bfloat16.png"}


def test_only_modes_that_may_lose_something_use_it(dev):
    able = dataclasses.replace(dev, bfloat16_copy=bfloat16.copy_of(dev.transformer))
    asked = ImageRequest("a cat", Size(256, 256), 1, steps=4)
    assert (generate(able, asked).pixels == generate(dev, asked).pixels).all()
    turbo = dataclasses.replace(asked, mode=Mode.TURBO)
    alike = abs(
        generate(able, turbo).pixels.astype(int) - generate(dataclasses.replace(dev, bfloat16_copy=None), turbo).pixels
    )
    assert 0 < alike.mean() < 4
    assert able.version_of(Mode.EXACT) == dataclasses.replace(dev, bfloat16_copy=None).version_of(Mode.EXACT)
    assert "/turbo-bfloat16/" in able.version_of(Mode.TURBO)
