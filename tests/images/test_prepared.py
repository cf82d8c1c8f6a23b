"""Cropping and scaling as in torch, in limited memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hidream.images import prepared
from hidream.model.latents.shape import fit
from hidream.types import Size

SOURCES = [(640, 360), (360, 640), (1000, 667), (256, 256), (37, 100), (2000, 1), (1, 900), (8192, 100), (2999, 3000)]
SIZES = [Size(512, 512), Size(400, 304), Size(360, 640), Size(1024, 1024), Size(2048, 256)]


def noise(width: int, height: int) -> Image.Image:
    """The hardest for two that should agree: neighbours differ as much as they can."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_it_is_what_torch_makes_of_it(source, size):
    """Within 0.001 of 255 levels of torch's float64, and 0.1 of its float32, which places pixels less exactly."""
    plane = noise(*source)
    ours = prepared.fitted(plane, size, 127.5, 1)
    values = torch.from_numpy(np.array(plane))[None].double().div_(127.5).sub_(1)
    exact, rounded = fit(values, size)[0].numpy(), fit(values.float(), size)[0].numpy()
    assert ours.dtype == np.float32
    assert np.abs(ours - exact).max() * 127.5 < 1e-3
    assert np.abs(ours - rounded).max() * 127.5 < 0.1


def test_bands_leave_no_seam(monkeypatch):
    plane, size = noise(640, 480), Size(256, 320)
    whole = prepared.fitted(plane, size, 127.5, 1)
    monkeypatch.setattr(prepared, "BAND_PIXELS", 640 * 7)
    assert np.array_equal(prepared.fitted(plane, size, 127.5, 1), whole)


def test_its_own_size_is_itself():
    plane = noise(256, 256)
    assert np.array_equal(prepared.fitted(plane, Size(256, 256), 1, 0), np.asarray(plane))


BOMB = """
import sys; sys.path.insert(0, "tests")
import resource
from PIL import Image
from hidream.images.prepared import prepare
from hidream.types import Size
from image_files import saved
file = saved(Image.new("RGB", ({width}, {height}), (200, 3, 4)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare([Size(1024, 1024), Size(1024, 512)], file, None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("shape", [(8000, 8), (8, 8000), (60_000, 2), (2, 60_000), (1, 1)])
@pytest.mark.integration
def test_a_tiny_file_of_any_shape_takes_no_more_than_its_size_does(shape):
    """Two sizes of three channels of floats are 18 MiB, and one channel four times as wide, while it is cut, 16."""
    script = BOMB.format(width=shape[0], height=shape[1])
    grown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(grown) / 1024 < 120
