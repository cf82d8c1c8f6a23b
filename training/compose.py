"""Scenes to images: sprites, placed and blended over drawn grounds, batched, on any device.

`Sprites` holds every sprite once, and each again in smaller sizes, a factor √2 apart, so that the one next to the
wanted size is sampled and nothing flickers or frays. An image depends on its scene, its seed and the shape only: not
on its batch, and but for rounding not on the device. Knows no model.

    python training/compose.py --count 24 --columns 12 --out sheet.png    # a contact sheet

Shapes: B images, P placements, H height, W width, S side of a sprite's frame. Images are in −1 to 1. An image's
shape is given in tokens, as objects stand on their grid (`placement.py`), and in pixels per token.
"""

from __future__ import annotations

import argparse
import io
import math
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from backgrounds import DRAWS, draw_backgrounds
from captions import caption
from concepts import Concepts, load_concepts
from hidream.model.latents.shape import Grid
from placement import Placement, place
from scenes import Scene, Split, draw_scene
from sprites import SPRITES_FILE

CHUNK_PX = {"cpu": 2**20, "cuda": 2**25}
"""Pixels composed at once: few on a CPU, for its caches; many on a GPU, within a few GB."""


class Sprites:
    """All sprites, premultiplied: `levels[k]` uint8 [objects, styles, 4, S, S] with S falling by √2."""

    def __init__(self, images: Tensor, concepts: Concepts, smallest: int = 24) -> None:
        """Take premultiplied `images` uint8 [objects, styles, 4, S, S] in the concepts' order, on their device."""
        self.objects = {name: i for i, name in enumerate(concepts.objects)}
        self.styles = {name: i for i, name in enumerate(concepts.styles)}
        assert images.shape[:3] == (len(self.objects), len(self.styles), 4), f"sprites of shape {images.shape}"
        self.concepts = concepts
        self.levels = [images]
        sides = [round(images.shape[-1] / math.sqrt(2) ** k) for k in range(1, 12)]
        self.levels += [_shrink(images, side) for side in sides if side >= smallest]

    @staticmethod
    def load(
        device: torch.device | str = "cpu",
        side: int = 384,
        concepts: Concepts | None = None,
        file: Path = SPRITES_FILE,
    ) -> Sprites:
        """Decode the sprite file to frames of `side` pixels, in the order of `concepts` (by default, concepts.toml).

        At 384 they take 302 MB, and as much again for the smaller levels; 256 is enough for images of 256². Raises
        FileNotFoundError when `sprites.py` never ran.
        """
        concepts = concepts or load_concepts()
        if not file.exists():
            raise FileNotFoundError(f"{file} does not exist; run `python training/sprites.py` where there is a network")
        shape = (len(concepts.objects), len(concepts.styles), side, side, 4)
        frames = np.empty(shape, np.uint8)
        with zipfile.ZipFile(file) as archive:
            for i, thing in enumerate(concepts.objects):
                for j, style in enumerate(concepts.styles):
                    image = Image.open(io.BytesIO(archive.read(f"{style}/{thing}.webp"))).convert("RGBa")
                    frames[i, j] = np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))
        frames[..., :3] = np.minimum(frames[..., :3], frames[..., 3:])  # Lanczos overshoots
        return Sprites(torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous().to(device), concepts)

    @property
    def device(self) -> torch.device:
        """Where the sprites are, and where images are composed."""
        return self.levels[0].device

    def level_for(self, size_px: float) -> int:
        """The smallest level whose frames are not much smaller than `size_px`."""
        fitting = [k for k, level in enumerate(self.levels) if level.shape[-1] >= 0.84 * size_px]
        return fitting[-1] if fitting else 0


def compose(scenes: Sequence[Scene], sprites: Sprites, grid: Grid, token_px: int, seed: int | Sequence[int]) -> Tensor:
    """Draw one image per scene: [B, 3, H, W] float32 in −1 to 1 on the sprites' device; `token_px` pixels per token.

    `seed` is one number for the batch, or one for each image, which is then the same in any batch.
    """
    own = seeds(seed, len(scenes)) if isinstance(seed, int) else seed
    height, width = (side * token_px for side in grid)
    images = torch.empty(len(scenes), 3, height, width, device=sprites.device)
    chunk = max(1, CHUNK_PX.get(sprites.device.type, 2**20) // (height * width))
    for i in range(0, len(scenes), chunk):
        some = slice(i, i + chunk)
        images[some] = _compose(scenes[some], sprites, grid, token_px, own[some])
    return images


def seeds(seed: int, count: int) -> list[int]:
    """Give the seed of each image of a batch that has one number."""
    return [seed * 2**20 + i for i in range(count)]


def _compose(scenes: Sequence[Scene], sprites: Sprites, grid: Grid, token_px: int, seeds: Sequence[int]) -> Tensor:
    values = np.stack([np.random.default_rng(seed).random(DRAWS, dtype=np.float32) for seed in seeds])
    kinds = [sprites.concepts.backgrounds[scene.background] for scene in scenes]
    height, width = (side * token_px for side in grid)
    images = draw_backgrounds(kinds, torch.from_numpy(values).to(sprites.device), height, width)
    placements = [place(scene, grid) for scene in scenes]
    for turn in range(max(len(each) for each in placements)):
        rows = [i for i, each in enumerate(placements) if turn < len(each)]
        for size in {placements[i][turn].size for i in rows}:
            some = [i for i in rows if placements[i][turn].size == size]
            _blend(images, some, [placements[i][turn] for i in some], sprites, token_px)
    return images.mul_(2).sub_(1)


def _blend(images: Tensor, rows: list[int], placements: list[Placement], sprites: Sprites, token_px: int) -> None:
    """Lay one placement over each of the given rows of images [B, 3, H, W], in place; all placements are as large."""
    device, size_px = sprites.device, placements[0].size * token_px
    objects = torch.tensor([sprites.objects[p.object] for p in placements], device=device)
    styles = torch.tensor([sprites.styles[p.style] for p in placements], device=device)
    frames = sprites.levels[sprites.level_for(size_px)][objects, styles].float().div_(255)
    layer = F.interpolate(frames, (size_px, size_px), mode="bilinear")  # [P, 4, h, w]
    tops, lefts = [p.row * token_px for p in placements], [p.column * token_px for p in placements]
    paste = paste_one_by_one if device.type == "cpu" else paste_at_once
    paste(images, layer, rows, tops, lefts)


def paste_one_by_one(images: Tensor, layer: Tensor, rows: list[int], tops: list[int], lefts: list[int]) -> None:
    """Blend windows [P, 4, h, w] into images [B, 3, H, W] in place, one after the other: best on a CPU."""
    for window, row, top, left in zip(layer, rows, tops, lefts, strict=True):
        under = images[row, :, top : top + window.shape[1], left : left + window.shape[2]]
        under.mul_(1 - window[3:]).add_(window[:3])


def paste_at_once(images: Tensor, layer: Tensor, rows: list[int], tops: list[int], lefts: list[int]) -> None:
    """The same for all windows together, each in another row of the batch: best on a GPU."""
    device, (window_h, window_w) = images.device, layer.shape[2:]
    b, top, left = torch.tensor([rows, tops, lefts], device=device)[:, :, None, None]  # [P, 1, 1] each
    y, x = top + torch.arange(window_h, device=device)[:, None], left + torch.arange(window_w, device=device)
    blended = images[b, :, y, x] * (1 - layer[:, 3, :, :, None])  # [P, h, w, 3]
    images[b, :, y, x] = blended + layer[:, :3].permute(0, 2, 3, 1)


def _shrink(images: Tensor, side: int) -> Tensor:
    """Area-filter frames [objects, styles, 4, S, S] to `side` pixels, object by object to save memory."""
    return torch.stack(
        [
            F.interpolate(each.float(), (side, side), mode="bilinear", antialias=True).round().to(torch.uint8)
            for each in images
        ]
    )


def main() -> None:
    """Draw the contact sheet."""
    parser = argparse.ArgumentParser(
        description="Compose a contact sheet of random scenes; their captions are printed."
    )
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--rows", type=int, default=8, help="of tokens (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=8, help="of tokens (default: %(default)s)")
    parser.add_argument("--token-px", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=list(Split), default=Split.TRAIN)
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    options = parser.parse_args()
    rng, concepts = random.Random(options.seed), load_concepts()
    grid = Grid(options.rows, options.columns)
    scenes = [draw_scene(rng, options.split, concepts, grid.columns / grid.rows) for _ in range(options.count)]
    images = compose(scenes, Sprites.load(), grid, options.token_px, options.seed)
    for scene in scenes:
        print(caption(scene, rng, concepts))
    sheet(images, columns=6).save(options.out)


def sheet(images: Tensor, columns: int) -> Image.Image:
    """Images [B, 3, H, W] in −1 to 1 side by side."""
    rows = -(-len(images) // columns)
    padded = F.pad(images, (2, 2, 2, 2), value=1)
    padded = torch.cat([padded, padded.new_ones(rows * columns - len(padded), *padded.shape[1:])])
    joined = padded.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Image.fromarray(((joined / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


if __name__ == "__main__":
    main()
