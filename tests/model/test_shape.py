"""Every size that may be asked is drawn in a legal shape and delivered exactly, never stretched."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hidream.model.shape import Grid, fit, render_grid, to_pixels
from hidream.types import Render, Size

sides = st.integers(256, 1536)


@given(sides, sides)
def test_best_stays_near_area_and_aspect(width, height):
    for token_px, best, largest in ((32, 64, 1024), (16, 4096, 4096)):
        grid = render_grid(Size(width, height), Render.BEST, token_px, best, largest)
        assert 1 <= grid.rows * grid.columns <= largest
        assert 0.7 <= grid.rows * grid.columns / best <= 1.4
        assert abs(math.log(grid.columns / grid.rows / (width / height))) < 0.2


@pytest.mark.parametrize("side", [512, 777, 1024, 1536])
def test_square_is_drawn_at_the_best_area(side):
    assert render_grid(Size(side, side), Render.BEST, 32, 64, 1024) == Grid(8, 8)
    assert render_grid(Size(side, side), Render.BEST, 16, 4096, 4096) == Grid(64, 64)


@pytest.mark.parametrize(
    ("size", "drawn"),  # facts/hidream-i1.md §1.6
    [
        ((1360, 768), (1360, 768)),
        ((1536, 1024), (1248, 832)),
        ((1216, 832), (1232, 832)),
        ((1536, 512), (1760, 576)),
        ((512, 512), (1024, 1024)),
    ],
)
def test_reference_rounds_as_the_reference(size, drawn):
    grid = render_grid(Size(*size), Render.REFERENCE, 16, 4096, 4096)
    assert (grid.columns * 16, grid.rows * 16) == drawn


def test_native_covers_the_asked_size():
    assert render_grid(Size(1000, 776), Render.NATIVE, 16, 4096, 4096) == Grid(rows=49, columns=63)


@given(st.integers(16, 600), st.integers(16, 600), st.integers(8, 700), st.integers(8, 700))
def test_fit_gives_exactly_the_size(height, width, to_width, to_height):
    assert fit(torch.zeros(3, height, width), Size(to_width, to_height)).shape == (3, to_height, to_width)


def test_fit_cuts_and_does_not_stretch():
    """A disc stays a disc: as wide as it is high, at its place."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    disc = ((x - 127.5) ** 2 + (y - 127.5) ** 2 < 50**2).float().expand(3, -1, -1)
    row, column = (fit(disc, Size(768, 512))[0] > 0.5).nonzero().T
    assert int(column.max() - column.min()) == int(row.max() - row.min())
    assert abs(float(column.float().mean()) - 383.5) < 1
    assert abs(float(row.float().mean()) - 255.5) < 1


def test_pixels_clamp_and_round():
    picture = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 5).expand(3, 1, 5)
    assert to_pixels(picture)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
