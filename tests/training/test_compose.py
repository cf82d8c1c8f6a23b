"""Images show their scenes: places, sizes, numbers, styles and backgrounds, with tiny sprites made here."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from compose import Sprites, compose, paste_at_once, paste_one_by_one, sheet
from concepts import load_concepts
from hidream.model.latents.shape import Grid
from placement import place
from scenes import Extent, Layout, Scene, Split, draw_scene
from sprites import VISIBLE

CONCEPTS = load_concepts()
PAIR = ("cat", "dog")
TINY = dataclasses.replace(CONCEPTS, objects={name: CONCEPTS.objects[name] for name in PAIR})
SHAPES = [Grid(8, 8), Grid(5, 15), Grid(15, 5), Grid(7, 9), Grid(12, 6)]
TOKEN_PX = 12
CAT, DOG = torch.tensor([1.0, 0, 1]), torch.tensor([0, 1.0, 1])  # colours that are on no ground


def make_sprites(side=64):
    """Discs that fill the visible part: cats magenta, dogs cyan."""
    at = (torch.arange(side) + 0.5) / side - 0.5
    inside = (at[:, None] ** 2 + at**2 < 0.4375**2).float()
    images = torch.stack([torch.cat([colour[:, None, None] * inside, inside[None]]) for colour in (CAT, DOG)])
    images = (255 * images).to(torch.uint8)[:, None].repeat(1, len(TINY.styles), 1, 1, 1)
    return Sprites(images, TINY, smallest=12)


SPRITES = make_sprites()


def where(image, colour):
    """Share of the pixels that have `colour`, and the centre of these, as shares of height and width."""
    found = ((image + 1) / 2 - colour[:, None, None]).abs().amax(0) < 0.1
    y, x = found.nonzero(as_tuple=True)
    return (
        found.float().mean().item(),
        (y.float().mean() / found.shape[0]).item(),
        (x.float().mean() / found.shape[1]).item(),
    )


@pytest.mark.parametrize("grid", SHAPES)
def test_shape_and_range(grid):
    rng = random.Random(0)
    scenes = [draw_scene(rng, Split.TRAIN, TINY, grid.columns / grid.rows) for _ in range(30)]
    images = compose(scenes, SPRITES, grid, TOKEN_PX, seed=1)
    assert images.shape == (30, 3, TOKEN_PX * grid.rows, TOKEN_PX * grid.columns)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1


def test_a_seed_gives_the_same_image_in_any_batch():
    rng = random.Random(1)
    scenes = [draw_scene(rng, Split.TRAIN, TINY) for _ in range(12)]
    seeds = list(range(12))
    together = compose(scenes, SPRITES, SHAPES[0], TOKEN_PX, seeds)
    assert torch.equal(together, compose(scenes, SPRITES, SHAPES[0], TOKEN_PX, seeds))
    alone = torch.cat(
        [compose([scene], SPRITES, SHAPES[0], TOKEN_PX, [seed]) for scene, seed in zip(scenes, seeds, strict=True)]
    )
    assert (together - alone).abs().max() < 1e-4
    assert (together - compose(scenes, SPRITES, SHAPES[0], TOKEN_PX, seed=2)).abs().amax((1, 2, 3)).min() > 0.02


@pytest.mark.parametrize("grid", SHAPES)
@pytest.mark.parametrize("layout", [Layout.LEFT_OF, Layout.ABOVE, Layout.AND])
def test_the_first_is_left_or_above(layout, grid):
    images = compose([Scene(PAIR, "flat", "gray", layout)] * 20, SPRITES, grid, TOKEN_PX, seed=3)
    beside = layout is Layout.LEFT_OF or (layout is Layout.AND and grid.columns >= grid.rows)
    for image in images:
        (cats, cat_y, cat_x), (dogs, dog_y, dog_x) = where(image, CAT), where(image, DOG)
        assert min(cats, dogs) > 0.02
        assert cat_x < dog_x - 0.2 if beside else cat_y < dog_y - 0.2


@pytest.mark.parametrize("grid", SHAPES)
def test_extents_differ(grid):
    small, normal, big = (
        [where(p, CAT)[0] for p in compose([Scene(("cat",), "3d", "red", extent=e)] * 15, SPRITES, grid, TOKEN_PX, 4)]
        for e in (Extent.SMALL, Extent.NORMAL, Extent.BIG)
    )
    assert max(small) < 0.6 * min(normal)
    assert max(normal) < 0.75 * min(big) or min(grid) < 6  # in a strip, a normal one is as big as there is room for


@pytest.mark.parametrize("grid", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_count_and_no_overlap(count, grid):
    scene = Scene(("dog",), "sticker", "white", count=count)
    placed = place(scene, grid)
    assert len(placed) == count
    covered = [
        (one.row + down, one.column + right) for one in placed for down in range(one.size) for right in range(one.size)
    ]
    assert len(covered) == len(set(covered))
    assert all(0 <= row <= grid.rows - 1 and 0 <= column <= grid.columns - 1 for row, column in covered)


@pytest.mark.parametrize("token_px", [12, 24, 40])
def test_sprites_land_where_they_are_placed(token_px):
    """Centre and area of a disc agree with its placement, for every level of detail."""
    grid = Grid(8, 9)
    for extent in Extent:
        scene = Scene(("cat",), "flat", "black", extent=extent)
        placed = place(scene, grid)[0]
        share, y, x = where(compose([scene], SPRITES, grid, token_px, [0])[0], CAT)
        assert x * 9 == pytest.approx(placed.column + placed.size / 2, abs=0.1)
        assert y * 8 == pytest.approx(placed.row + placed.size / 2, abs=0.1)
        assert share * 8 * 9 == pytest.approx(3.14159 / 4 * (VISIBLE * placed.size) ** 2, rel=0.2)


def test_sprites_stand_upright():
    """A sprite with one bright quarter, at the top left."""
    frame = torch.zeros(4, 64, 64)
    frame[3, 4:60, 4:60] = 1
    frame[0, 4:32, 4:32] = 1
    sprites = Sprites((frame * 255).to(torch.uint8).repeat(2, len(TINY.styles), 1, 1, 1), TINY)
    scene, grid = Scene(("cat",), "flat", "blue"), Grid(8, 8)
    placed = place(scene, grid)[0]
    _, y, x = where(compose([scene], sprites, grid, 16, [0])[0], torch.tensor([1.0, 0, 0]))
    assert x * 8 == pytest.approx(placed.column + placed.size / 4, abs=0.15)
    assert y * 8 == pytest.approx(placed.row + placed.size / 4, abs=0.15)


def test_every_ground_is_told_from_every_other():
    """By a rough look (8 × 8 pixels), an image's nearest neighbour is of its own kind, wherever the cat stands."""
    kinds, each = list(TINY.backgrounds), 8
    scenes = [Scene(("cat",), "flat", kind, extent=Extent.SMALL) for kind in kinds for _ in range(each)]
    rough = torch.nn.functional.adaptive_avg_pool2d(compose(scenes, SPRITES, SHAPES[0], TOKEN_PX, seed=5), 8).flatten(1)
    distance = torch.cdist(rough, rough, p=1) + 1e9 * torch.eye(len(scenes))
    kind = torch.arange(len(scenes)) // each
    assert (kind[distance.argmin(1)] == kind).float().mean() > 0.97


@pytest.mark.parametrize("kind", TINY.backgrounds)
def test_grounds_vary(kind):
    small = Scene(("cat",), "flat", kind, extent=Extent.SMALL)
    one, other = compose([small, small], SPRITES, Grid(6, 9), TOKEN_PX, [1, 2])
    assert 0.004 < (one - other).abs().mean() < 0.6


def test_smaller_levels_are_taken_for_smaller_sprites():
    levels = [SPRITES.level_for(size) for size in (500, 56, 40, 28, 20, 2)]
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert levels[-1] == len(SPRITES.levels) - 1


def test_edges_are_smooth():
    """Along the edge of a disc there are pixels between the two colours, and none beyond them."""
    image = compose([Scene(("cat",), "flat", "black", extent=Extent.BIG)], SPRITES, Grid(8, 8), 16, [3])[0]
    red = (image[0] + 1) / 2
    assert ((red > 0.3) & (red < 0.7)).sum() > 50
    assert red.max() <= 1


def test_without_the_sprite_file_the_message_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run `python training/sprites\.py`"):
        Sprites.load(file=tmp_path / "none.zip")


def test_sheet():
    assert sheet(torch.zeros(5, 3, 16, 24), columns=2).size == (2 * 28, 3 * 20)


def test_pasting_at_once_is_pasting_one_by_one():
    """Exactly: the same sums on the same numbers."""
    random_numbers = torch.Generator().manual_seed(0)
    images, layer = (
        torch.rand(5, 3, 32, 48, generator=random_numbers),
        torch.rand(3, 4, 20, 24, generator=random_numbers),
    )
    places = ([4, 0, 2], [0, 12, 5], [24, 0, 7])
    fast, plain = images.clone(), images.clone()
    paste_at_once(fast, layer, *places)
    paste_one_by_one(plain, layer, *places)
    assert torch.equal(fast, plain)
    assert not torch.equal(fast, images)
