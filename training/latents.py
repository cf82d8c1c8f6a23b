"""Latents with captions to train on: composed and encoded afresh, or drawn from a pool where that costs too much.

A batch has one shape; shapes are those that the product itself would draw for sizes of 1:3 to 3:1. The pool grows
while the training runs: part by part, each of one shape and in a file of its own, made when a step first needs it. What
a part shows follows from its number, so that a killed training finds the same pool.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import recipe
from captions import caption
from compose import Sprites, compose
from concepts import Concepts, load_concepts
from hidream.model.checkpoint.checkpoint import Checkpoint
from hidream.model.latents.autoencoder import Autoencoder, load_autoencoder
from hidream.model.latents.shape import Grid, render_grid
from hidream.types import Render, Size
from questions import token_truths
from scenes import Scene, Split, draw_scene
from stage import Dice, quick

SIZES = [(3, 1), (5, 2), (2, 1), (16, 9), (3, 2), (4, 3), (3, 4), (2, 3), (9, 16), (1, 2), (2, 5), (1, 3)]
PART = 16
"""Images in a part of the pool, and images encoded at once."""


def shapes(token_px: int) -> list[Grid]:
    """List the best square and the other shapes, each once."""
    side = recipe.BEST_SIDE
    found = {Grid(side, side): None}
    for width, height in SIZES:
        size = Size(512 * width // max(width, height), 512 * height // max(width, height))
        found[render_grid(size, Render.BEST, token_px, side**2, 4 * side**2)] = None
    return list(found)


def draw_grid(grids: list[Grid], square: float, rng: random.Random) -> Grid:
    """Draw one of `shapes`: so often the best square, else any other."""
    return grids[0] if rng.random() < square else rng.choice(grids[1:])


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
    scenes: list[Scene]
    shown: Tensor  # [B, rows·columns], what each token shows: the number of an object, or behind them of a background
    part: Tensor  # [B, rows·columns], and which part of it, as `placement.part_of` numbers them
    style: Tensor  # [B]


class Latents:
    """The source of batches; without a `pool` every batch is made afresh."""

    def __init__(
        self,
        vae: Autoencoder,
        sprites: Sprites,
        concepts: Concepts,
        token_px: int,
        square: float,
        pool: recipe.Pool | None,
        folder: Path,
    ) -> None:
        self._vae, self._sprites, self._concepts, self._token_px = vae, sprites, concepts, token_px
        self._square, self._pool, self._folder = square, pool, folder
        self._grids = shapes(token_px)
        self._parts: list[tuple[Grid, Tensor, list[Scene], Tensor]] = []

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def batch(self, dice: Dice, size: int, step: int, *, square: bool = False) -> Batch:
        """Draw the batch of a step, of one shape, in float32. Captions are worded anew each time."""
        wording = random.Random(dice.seed())
        grid = draw_grid(self._grids, 1 if square else self._square, wording)
        if self._pool is None:
            seed = dice.seed()
            latent, picked = self._encode(grid, size, seed)
            found = token_truths(picked, grid, self._concepts)
        else:
            self._grow(min(self._pool.start + step * self._pool.per_step, self._pool.most))
            parts = [part for part in self._parts if part[0] == grid] or self._parts[:1]
            grid = parts[0][0]  # of the first part, a square, as long as there is none of the shape that was drawn
            chosen = [(wording.choice(parts), wording.randrange(PART)) for _ in range(size)]
            latent = torch.stack([part[1][i] for part, i in chosen]).float().to(self._sprites.device)
            picked = [part[2][i] for part, i in chosen]
            found = torch.stack([part[3][i] for part, i in chosen])
        captions = [caption(scene, wording, self._concepts) for scene in picked]
        style = torch.tensor([self._sprites.styles[scene.style] for scene in picked])
        shown, part = found.to(latent.device).unbind(1)
        return Batch(latent, captions, grid, picked, shown, part, style.to(latent.device))

    @torch.no_grad()
    def _encode(self, grid: Grid, size: int, seed: int) -> tuple[Tensor, list[Scene]]:
        scenes = draw_scenes(seed, size, self._concepts, grid.columns / grid.rows)
        images = compose(scenes, self._sprites, grid, self._token_px, seed)
        with quick(self._sprites.device):
            return torch.cat([self._vae.encode(part) for part in images.split(PART)]).float(), scenes

    def _grow(self, images: int) -> None:
        """Read or make parts until there are as many images."""
        while len(self._parts) * PART < images:
            number = len(self._parts)
            grid = draw_grid(self._grids, self._square if number else 1, random.Random(number))
            file = self._folder / f"{number:05}.safetensors"
            if file.exists():
                aspect = grid.columns / grid.rows
                latents, scenes = load_file(file)["latents"], draw_scenes(number, PART, self._concepts, aspect)
            else:
                latents, scenes = self._encode(grid, PART, number)
                latents = latents.half().cpu()
                self._folder.mkdir(parents=True, exist_ok=True)
                save_file({"latents": latents}, file.with_suffix(".part"))
                file.with_suffix(".part").replace(file)
            self._parts.append((grid, latents, scenes, token_truths(scenes, grid, self._concepts)))


def latents_of(config: recipe.Recipe, runs: Path, device: torch.device) -> Latents:
    """Open the source of batches for all stages behind the autoencoder's; its pool, on a CPU, is theirs in common."""
    vae = load_autoencoder(Checkpoint(runs / "autoencoder"), device, torch.float32)
    pool = config.pool if device.type == "cpu" else None
    token_px = vae.factor * config.transformer.patch_size
    return Latents(vae, Sprites.load(device), load_concepts(), token_px, config.pretrain.square, pool, runs / "latents")
