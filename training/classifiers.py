"""Stage 6: the judge. A small convolutional network that says what is on a picture, trained on rendered ones only.

It answers the `questions.py`, with one head each. Before it may judge nano it is judged itself, on held-out renders and
on the autoencoder's reconstructions of them.

    python training/classifiers.py [--runs FOLDER]
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import recipe
from compose import Sprites, compose
from concepts import Concepts, load_concepts
from hidream.model.shape import Grid
from latents import draw_grid, draw_scenes, shapes
from muon import Optimisers, rise_and_fall
from questions import heads, loss_of, truths
from scenes import Scene, Split, draw_scene
from stage import Dice, Stage, arguments, done, quick

SIDE = 192
"""Pixels along each side that the judge looks at; other pictures are brought to this area first."""
WIDTHS = (32, 64, 128, 256)
HELD_OUT_PICTURES = 512
WARM_UP = 100


class Judge(nn.Module):
    """Residual convolutions, a mean over the places, one linear layer per question."""

    def __init__(self, concepts: Concepts) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 4, 4)]
        for i, width in enumerate(WIDTHS):
            blocks += [Residual(width), Residual(width)]
            if i + 1 < len(WIDTHS):
                blocks.append(nn.Conv2d(width, WIDTHS[i + 1], 2, 2))
        self.trunk = nn.Sequential(*blocks)
        # where things are matters for the first object and the layout: the mean is taken over a 3 × 3 grid of places
        self.pool = nn.AdaptiveAvgPool2d(3)
        self.heads = heads(9 * WIDTHS[-1], concepts)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Pictures [B, 3, H, W] in −1 to 1 to the logits of each question."""
        shrink = (SIDE**2 / (pictures.shape[-1] * pictures.shape[-2])) ** 0.5
        size = [max(32, round(side * shrink / 32) * 32) for side in pictures.shape[-2:]]
        small = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        features = self.pool(self.trunk(small)).flatten(1)
        return {name: head(features) for name, head in self.heads.items()}


class Residual(nn.Module):
    """Two convolutions around a norm, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


def blurred(pictures: Tensor, dice: Dice) -> Tensor:
    """Now and then shrink and enlarge, or add noise, so that the judge is not thrown by what a decoder leaves."""
    if dice.uniform() < 0.3:
        scale = 0.4 + 0.5 * dice.uniform()
        size = [int(side * scale) for side in pictures.shape[-2:]]
        small = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        pictures = F.interpolate(small, pictures.shape[-2:], mode="bilinear")
    if dice.uniform() < 0.3:
        pictures = pictures + 0.1 * dice.uniform() * torch.randn_like(pictures)
    return pictures


def train(config: recipe.Recipe, folder: Path, device: torch.device) -> None:
    """Train, or go on, and write `folder/judge.pt`."""
    if done(folder):
        return
    concepts, sprites = load_concepts(), Sprites.load(device)
    torch.manual_seed(config.seed)
    judge, settings, dice = Judge(concepts).to(device), config.judge, Dice(config.seed + 1)
    rates = functools.partial(rise_and_fall, warm_up=WARM_UP, steps=settings.steps)
    optimiser = Optimisers(judge, rates, settings.adamw_rate, settings.muon_rate, ends=("trunk.0.", "heads"))
    stage = Stage(folder, config.run, {"judge": judge, "optimiser": optimiser, "dice": dice})
    grids = shapes(config.side_px // recipe.BEST_SIDE)
    for _ in stage.steps(settings.steps):
        grid = draw_grid(grids, config.pretrain.square, random.Random(dice.seed()))
        aspect = grid.columns / grid.rows
        scenes = draw_scenes(dice.seed(), settings.batch, concepts, aspect)
        pictures = blurred(compose(scenes, sprites, grid, SIDE // recipe.BEST_SIDE, dice.seed()), dice)
        truth = {name: value.to(device) for name, value in truths(scenes, concepts, aspect).items()}
        with quick(device):
            loss = loss_of(judge(pictures), truth)
        optimiser.step(loss)
        stage.report(loss=loss)
    torch.save(judge.state_dict(), folder / "judge.pt")
    stage.finish()


def held_out_pictures(
    seed: int, grids: list[Grid], token_px: int, concepts: Concepts, sprites: Sprites
) -> Iterator[tuple[Tensor, Scene]]:
    """Render scenes whose combinations no stage of training has met, each [3, H, W]: every other one square."""
    rng = random.Random(seed)
    for i in range(HELD_OUT_PICTURES):
        grid = grids[0] if i % 2 == 0 else grids[1 + i // 2 % (len(grids) - 1)]
        scene = draw_scene(rng, Split.HELD_OUT, concepts, grid.columns / grid.rows)
        yield compose([scene], sprites, grid, token_px, [rng.getrandbits(32)])[0], scene


def load(folder: Path, concepts: Concepts, device: torch.device) -> Judge:
    """Read a trained judge."""
    judge = Judge(concepts)
    judge.load_state_dict(torch.load(folder / "judge.pt", weights_only=True))
    return judge.to(device).eval().requires_grad_(False)


def main() -> None:
    """Run the stage."""
    given = arguments(__doc__).parse_args()
    train(recipe.load(given.config), given.runs / "judge", given.device)


if __name__ == "__main__":
    main()
