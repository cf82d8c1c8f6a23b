"""Stage 7: the judge. A small convolutional network that says what is on an image, trained on rendered ones only.

It answers the `questions.py`, with one head each, and learns beside them to read off every token's place what it shows,
which teaches it more than a whole image's answers. Before it may judge nano it is judged itself, on held-out renders
and on the autoencoder's reconstructions of them.

    python training/classifiers.py [--runs FOLDER]
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import recipe
from compose import Sprites, compose
from concepts import Concepts, load_concepts
from hidream.model.latents.shape import Grid
from latents import draw_grid, draw_scenes, shapes
from muon import Optimisers, rise_and_fall
from questions import TokenReader, heads, loss_of, token_truths, truths
from scenes import Scene, Split, draw_scene
from stage import Dice, Stage, arguments, done, quick

TOKEN_PX = 32
"""Pixels along each side of a token's place, as the judge sees it."""
WIDTHS = (64, 128, 256)
FILE = "judge.safetensors"
HELD_OUT_IMAGES = 512
WARM_UP = 100


class Judge(nn.Module):
    """Residual convolutions to one place per token; of these what is anywhere and what is where; the answers."""

    def __init__(self, concepts: Concepts) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 8, 8)]
        for i, width in enumerate(WIDTHS):
            blocks += [Residual(width), Residual(width)]
            if i + 1 < len(WIDTHS):
                blocks.append(nn.Conv2d(width, WIDTHS[i + 1], 2, 2))
        self.trunk = nn.Sequential(*blocks, nn.GroupNorm(8, WIDTHS[-1]))
        # where things are matters for the first object and the layout: the mean is taken over a 3 × 3 grid of places
        self.pool = nn.AdaptiveAvgPool2d(3)
        self.heads = heads(10 * WIDTHS[-1], concepts)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] in −1 to 1, of about one of nano's shapes, to the logits of each question."""
        aspect = math.log(images.shape[-1] / images.shape[-2])
        grid = min(shapes(TOKEN_PX), key=lambda grid: abs(math.log(grid.columns / grid.rows) - aspect))
        size = [side * TOKEN_PX for side in grid]
        return self.answer(self.trunk(F.interpolate(images, size, mode="bilinear", antialias=True)))

    def answer(self, seen: Tensor) -> dict[str, Tensor]:
        """Turn what is seen at each token's place, [B, C, rows, columns], into the logits of each question."""
        features = torch.cat((self.pool(seen).flatten(1), seen.amax((2, 3))), 1)
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


def blurred(images: Tensor, dice: Dice) -> Tensor:
    """Now and then shrink and enlarge, or add noise, so that the judge is not thrown by what a decoder leaves."""
    if dice.uniform() < 0.3:
        scale = 0.4 + 0.5 * dice.uniform()
        size = [int(side * scale) for side in images.shape[-2:]]
        small = F.interpolate(images, size, mode="bilinear", antialias=True)
        images = F.interpolate(small, images.shape[-2:], mode="bilinear")
    if dice.uniform() < 0.3:
        images = images + 0.1 * dice.uniform() * torch.randn_like(images)
    return images


def train(config: recipe.Recipe, folder: Path, device: torch.device) -> None:
    """Train, or go on, and write `folder/judge.safetensors`, in 16 bit."""
    if done(folder):
        return
    concepts, sprites = load_concepts(), Sprites.load(device)
    torch.manual_seed(config.seed)
    judge, settings, dice = Judge(concepts).to(device), config.judge, Dice(config.seed + 1)
    reader = TokenReader(WIDTHS[-1], concepts).to(device)
    rates = functools.partial(rise_and_fall, warm_up=WARM_UP, steps=settings.steps)
    whole = nn.ModuleDict({"judge": judge, "reader": reader})
    optimiser = Optimisers(whole, rates, settings.adamw_rate, settings.muon_rate, ends=("trunk.0.", "heads", "reader"))
    stage = Stage(folder, config.run, {"whole": whole, "optimiser": optimiser, "dice": dice})
    grids = shapes(TOKEN_PX)
    for _ in stage.steps(settings.steps):
        grid = draw_grid(grids, config.pretrain.square, random.Random(dice.seed()))
        aspect = grid.columns / grid.rows
        scenes = draw_scenes(dice.seed(), settings.batch, concepts, aspect)
        images = blurred(compose(scenes, sprites, grid, TOKEN_PX, dice.seed()), dice)
        truth = {name: value.to(device) for name, value in truths(scenes, concepts, aspect).items()}
        shown, part = token_truths(scenes, grid, concepts).to(device).unbind(1)
        with quick(device):
            seen = judge.trunk(images)
            losses = {"answers": loss_of(judge.answer(seen), truth)}
            losses["reading"] = reader(seen.flatten(2).mT, shown, part, truth["style"])
        optimiser.step(torch.stack(list(losses.values())).sum())
        stage.report(**losses)
    save_file({name: value.half().cpu().contiguous() for name, value in judge.state_dict().items()}, folder / FILE)
    stage.finish()


def held_out_images(
    seed: int, grids: list[Grid], token_px: int, concepts: Concepts, sprites: Sprites
) -> Iterator[tuple[Tensor, Scene]]:
    """Render scenes whose combinations no stage of training has met, each [3, H, W]: every other one square."""
    rng = random.Random(seed)
    for i in range(HELD_OUT_IMAGES):
        grid = grids[0] if i % 2 == 0 else grids[1 + i // 2 % (len(grids) - 1)]
        scene = draw_scene(rng, Split.HELD_OUT, concepts, grid.columns / grid.rows)
        yield compose([scene], sprites, grid, token_px, [rng.getrandbits(32)])[0], scene


def load(folder: Path, concepts: Concepts, device: torch.device) -> Judge:
    """Read a trained judge."""
    judge = Judge(concepts)
    judge.load_state_dict(load_file(folder / FILE))
    return judge.to(device).eval().requires_grad_(False)


def main() -> None:
    """Run the stage."""
    given = arguments(__doc__).parse_args()
    train(recipe.load(given.config), given.runs / "judge", given.device)


if __name__ == "__main__":
    main()
