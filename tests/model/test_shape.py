"""Every size that may be asked is drawn in a legal shape and delivered exactly, never stretched."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hidream.model.latents.shape import BICUBIC_REACH, SPARE, Grid, fit, render_grid, to_pixels, trim
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


@pytest.mark.parametrize(("width", "height"), [(768, 512), (512, 768)])
def test_fit_cuts_and_does_not_stretch(width, height):
    """A disc stays a disc: as wide as it is high, of the scale that covers the longer side, at its place."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    disc = ((x - 127.5) ** 2 + (y - 127.5) ** 2 < 50**2).float().expand(3, -1, -1)
    row, column = (fit(disc, Size(width, height))[0] > 0.5).nonzero().T
    assert int(column.max() - column.min()) == int(row.max() - row.min())
    assert abs(int(column.max() - column.min()) - 300) <= 3
    assert abs(float(column.float().mean()) - (width - 1) / 2) < 1
    assert abs(float(row.float().mean()) - (height - 1) / 2) < 1


@pytest.mark.parametrize(
    ("size", "nano", "published"),  # rows and columns; docs/MODELS.md has the published model's in pixels
    [
        ((512, 512), (8, 8), (64, 64)),
        ((1280, 720), (6, 11), (48, 85)),
        ((1536, 1024), (6, 9), (52, 78)),
        ((1024, 1536), (9, 6), (78, 52)),
        ((1536, 256), (3, 18), (26, 156)),
        ((777, 1001), (9, 7), (72, 56)),
    ],
)
def test_the_chosen_shape(size, nano, published):
    assert render_grid(Size(*size), Render.BEST, 32, 64, 1024) == nano
    assert render_grid(Size(*size), Render.BEST, 16, 4096, 4096) == published


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1), (1, 60000), (7, 9000), (9000, 8), (1, 1), (3, 4096)])
def test_what_is_scaled_is_no_larger_than_a_few_outputs(shape, monkeypatch):
    """Scaled first, a line of 60000 pixels would be 60000 times as large as the output."""
    made, scale = [], F.interpolate

    def interpolate(*given, **named):
        made.append(scale(*given, **named))
        return made[-1]

    monkeypatch.setattr(F, "interpolate", interpolate)
    for size in (Size(1024, 1024), Size(256, 1536), Size(1536, 256)):
        assert fit(torch.rand(3, *shape), size).shape == (3, size.height, size.width)
        assert made[-1].numel() <= (SPARE + 2 * BICUBIC_REACH + 1) * 3 * max(size.width, size.height) ** 2


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (33, 33)])
def test_what_is_cut_off_before_is_nothing_that_is_seen(size):
    """A long ramp has at its middle what it would have there if it were scaled whole."""
    ramp = torch.linspace(-1, 1, 2001).expand(3, 8, 2001)
    fitted, size = fit(ramp, Size(*size)), Size(*size)
    scale = size.height / 8
    whole = F.interpolate(ramp[None], (size.height, round(2001 * scale)), mode="bicubic", antialias=True)[0]
    left = (whole.shape[-1] - size.width) // 2
    assert (fitted - whole[..., left : left + size.width]).abs().max() < 2 / 2001  # a pixel of the ramp


@given(sides, sides, st.sampled_from([Render.BEST, Render.REFERENCE, Render.NATIVE]))
def test_a_drawing_is_scaled_whole(width, height, render):
    """So that nothing is cut off first, which would change the last bits of images."""
    for token_px, best, largest in ((32, 64, 1024), (16, 4096, 4096)):
        grid = render_grid(Size(width, height), render, token_px, best, largest)
        drawn = torch.empty(3, grid.rows * token_px, grid.columns * token_px, device="meta")
        assert trim(drawn, Size(width, height)).shape == drawn.shape


@pytest.mark.parametrize("render", list(Render))
@pytest.mark.parametrize("size", [(1, 1536), (1536, 1), (1, 1), (3, 1000)])
def test_every_size_has_a_shape(size, render):
    for token_px, best, largest in ((32, 64, 1024), (16, 4096, 4096)):
        grid = render_grid(Size(*size), render, token_px, best, largest)
        assert 1 <= grid.rows * grid.columns <= largest
        assert min(grid) >= 1


def test_pixels_clamp_and_round():
    image = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 5).expand(3, 1, 5)
    assert to_pixels(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
