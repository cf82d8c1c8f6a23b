"""Latents with captions to train on: composed and encoded afresh, or drawn once and kept where that costs too much.

A batch has one shape; shapes are those that the product itself would draw for sizes of 1:3 to 3:1.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from captions import caption
from compose import Sprites, compose
from concepts import Concepts
from hidream.model.shape import Grid, render_grid
from hidream.model.vae import Autoencoder
from hidream.types import Render, Size
from scenes import Scene, Split, draw_scene
from stage import Dice

BEST_SIDE = 8
"""Tokens along each side of the best square."""
SIZES = [(3, 1), (5, 2), (2, 1), (16, 9), (3, 2), (4, 3), (3, 4), (2, 3), (9, 16), (1, 2), (2, 5), (1, 3)]
ENCODED_AT_ONCE = 16


def shapes() -> list[Grid]:
    """List the best square and the other shapes, each once."""
    found = {Grid(BEST_SIDE, BEST_SIDE): None}
    for width, height in SIZES:
        size = Size(512 * width // max(width, height), 512 * height // max(width, height))
        found[render_grid(size, Render.BEST, 64, BEST_SIDE**2, 4 * BEST_SIDE**2)] = None
    return list(found)


def draw_scenes(seed: int, count: int, concepts: Concepts, aspect: float = 1.0) -> list[Scene]:
    """Draw scenes to train on; a seed always gives the same."""
    rng = random.Random(seed)
    return [draw_scene(rng, Split.TRAIN, concepts, aspect) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Batch:
    """Latents [B, C, h, w] and what they show."""

    latent: Tensor
    captions: list[str]
    grid: Grid


class Latents:
    """The source; `cached` pictures a shape are kept in `file`, 0 makes every batch afresh."""

    def __init__(
        self, vae: Autoencoder, sprites: Sprites, concepts: Concepts, token_px: int, cached: int, file: Path
    ) -> None:
        self._vae, self._sprites, self._concepts, self._token_px = vae, sprites, concepts, token_px
        self._grids = shapes()
        self._cache = self._load(cached, file) if cached else {}

    def batch(self, dice: Dice, size: int, square: float) -> Batch:
        """Draw a batch; with probability `square` a square one. Captions are worded anew each time."""
        wording = random.Random(dice.seed())
        grid = self._grids[0] if dice.uniform() < square else wording.choice(self._grids[1:])
        if grid in self._cache:
            latents, scenes = self._cache[grid]
            chosen = [wording.randrange(len(scenes)) for _ in range(size)]
            latent, picked = latents[chosen].float().to(self._sprites.device), [scenes[i] for i in chosen]
        else:
            latent, picked = self._encode(grid, size, dice.seed())
        return Batch(latent, [caption(scene, wording, self._concepts) for scene in picked], grid)

    @torch.no_grad()
    def _encode(self, grid: Grid, size: int, seed: int) -> tuple[Tensor, list[Scene]]:
        height, width = grid.rows * self._token_px, grid.columns * self._token_px
        scenes = draw_scenes(seed, size, self._concepts, width / height)
        pictures = compose(scenes, self._sprites, height, width, seed)
        return torch.cat([self._vae.encode(part) for part in pictures.split(ENCODED_AT_ONCE)]), scenes

    def _load(self, cached: int, file: Path) -> dict[Grid, tuple[Tensor, list[Scene]]]:
        """Read the cache, or make it: shapes that are not square share as many pictures as the square has."""
        if file.exists():
            kept: dict[Grid, Tensor] = torch.load(file, weights_only=True)
        else:
            kept = {}
        cache = {}
        for i, grid in enumerate(self._grids):
            count = cached if i == 0 else cached // (len(self._grids) - 1)
            parts = -(-count // ENCODED_AT_ONCE)
            seeds = [i * 1_000_000 + part for part in range(parts)]
            if tuple(grid) not in kept:
                kept[tuple(grid)] = torch.cat([self._encode(grid, ENCODED_AT_ONCE, s)[0].half().cpu() for s in seeds])
                torch.save(kept, file)
            aspect = grid.columns / grid.rows
            scenes = [scene for s in seeds for scene in draw_scenes(s, ENCODED_AT_ONCE, self._concepts, aspect)]
            cache[grid] = (kept[tuple(grid)], scenes)
        return cache
