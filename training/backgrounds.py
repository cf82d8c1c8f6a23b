"""Draw the grounds of images: plain colours and nine scenes, each a little different every time.

Batched torch on any device; knows backgrounds by name, nothing of objects. All chance comes in as numbers (`Draws`), so
that an image depends on its own seed only, not on its batch or its device. No scene shows what is also an object: no
crescent moon, no snowflake, no ringed planet, no whole sun, no whole tree.

Shapes: B images, H height, W width. Lengths are in short sides of the image, so that round stays round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from concepts import Background

DRAWS = 4096
"""Numbers that one image may use."""


class Draws:
    """Uniform numbers in 0 to 1, handed out in order: values [B, DRAWS]."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.used = values, 0

    def take(self, *shape: int) -> Tensor:
        """The next numbers of each image: [B, *shape]."""
        count = math.prod(shape)
        assert self.used + count <= self.values.shape[1], f"more than {self.values.shape[1]} numbers for one image"
        taken = self.values[:, self.used : self.used + count]
        self.used += count
        return taken.reshape(-1, *shape)

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform between two numbers: [B, *shape], by default [B, 1, 1, 1]."""
        return low + (high - low) * self.take(*(shape or (1, 1, 1)))


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where the pixels are: x [1, 1, 1, W], y [1, 1, H, 1], in short sides; y from 0 at the top to `height`."""

    x: Tensor
    y: Tensor
    width: float
    height: float
    pixel: float

    @staticmethod
    def of(height_px: int, width_px: int, device: torch.device) -> Canvas:
        """The canvas of an image of this many pixels."""
        short = min(height_px, width_px)
        x = (torch.arange(width_px, device=device) + 0.5) / short
        y = (torch.arange(height_px, device=device) + 0.5) / short
        return Canvas(x[None, None, None], y[None, None, :, None], width_px / short, height_px / short, 1 / short)

    def cover(self, depth: Tensor) -> Tensor:
        """How much of a pixel is inside, by the distance from the edge (positive inside): 0 to 1."""
        return (depth / self.pixel + 0.5).clamp(0, 1)


def draw_backgrounds(kinds: list[Background], values: Tensor, height_px: int, width_px: int) -> Tensor:
    """One ground for each of `kinds` from its own random `values` [B, DRAWS]: [B, 3, H, W] in 0 to 1."""
    canvas = Canvas.of(height_px, width_px, values.device)
    images = values.new_empty(len(kinds), 3, height_px, width_px)
    for name in sorted({"" if kind.rgb else kind.name for kind in kinds}):
        rows = [
            i for i, kind in enumerate(kinds) if (kind.rgb is None and kind.name == name) or (kind.rgb and not name)
        ]
        at = torch.tensor(rows, device=values.device)
        draws = Draws(values[at])
        if name:
            images[at] = SCENES[name](draws, canvas)
        else:
            rgb = torch.tensor([kinds[i].rgb for i in rows], device=values.device)
            images[at] = _plain(draws, canvas, rgb / 255)
    return images.clamp_(0, 1)


# --- Tools ------------------------------------------------------------------------------------------------------------


def _rgb(draws: Draws, *hexes: str, vary: float = 0.05) -> list[Tensor]:
    """Colours, each a little varied: [B, 3, 1, 1] each."""
    colours = [[int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)] for text in hexes]
    fixed = torch.tensor(colours, device=draws.values.device)[None]  # [1, colours, 3]
    varied = fixed + draws.between(-vary, vary, len(hexes), 3) * 0.6 + draws.between(-vary, vary, len(hexes), 1)
    return list(varied[..., None, None].unbind(1))


def _ramp(colours: list[Tensor], stops: list[float], t: Tensor) -> Tensor:
    """Blend colours [B, 3, 1, 1] along t [B, 1, H, 1]: [B, 3, H, 1]."""
    blended = colours[0]
    for colour, low, high in zip(colours[1:], stops, stops[1:], strict=False):
        blended = torch.lerp(blended, colour, ((t - low) / (high - low)).clamp(0, 1))
    return blended


def _paint(image: Tensor, colour: Tensor, mask: Tensor) -> Tensor:
    """Lay a colour [B, 3, ...] over the image where mask [B, 1, H, W] is 1."""
    return image + (colour - image) * mask


def _ridge(draws: Draws, canvas: Canvas, level: Tensor | float, swing: float, waves: float) -> Tensor:
    """The height y of a line of hills around `level` (both in short sides) over x: [B, 1, 1, W]."""
    line = level + torch.zeros_like(draws.take(1, 1, 1))
    for octave in (1.0, 2.1, 3.7):
        phase, strength = draws.between(0, 2 * math.pi), draws.between(0.4, 1) * swing / octave**1.3
        line = line + strength * torch.sin(canvas.x * (waves * octave * draws.between(0.8, 1.2)) + phase)
    return line


def _dots(draws: Draws, canvas: Canvas, cell: float, radius: tuple[float, float], share: float) -> Tensor:
    """Round dots, at most one in each cell of a grid, softly edged and of uneven brightness: [B, 1, H, W]."""
    columns, rows = math.ceil(canvas.width / cell), math.ceil(canvas.height / cell)
    size = draws.between(*radius, rows, columns)
    room = 0.5 - max(radius) / cell
    across, down = (draws.between(0.5 - room, 0.5 + room, rows, columns) for _ in range(2))
    light = draws.between(0.35, 1.5, rows, columns).clamp(max=1) * (draws.take(rows, columns) < share)
    i, j = (canvas.y.flatten() / cell).long(), (canvas.x.flatten() / cell).long()
    dy = ((canvas.y / cell - i[None, None, :, None] - _spread(down, i, j)) * cell).square_()
    dx = ((canvas.x / cell - j[None, None, None] - _spread(across, i, j)) * cell).square_()
    distance = dy.add_(dx).sqrt_()
    soft = canvas.cover(_spread(size, i, j) - distance)
    return soft.mul_(_spread(light, i, j))


def _spread(cells: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Each pixel's cell: cells [B, rows, columns] to [B, 1, H, W]."""
    return cells.index_select(1, i).index_select(2, j)[:, None]


def _clouds(
    image: Tensor, draws: Draws, canvas: Canvas, count: int, colour: Tensor, top: float, bottom: float
) -> Tensor:
    """Flat-bottomed heaps of discs, evenly over the width, between two heights (in shares of the image)."""
    depth = None
    for n in range(count):
        x = (n + draws.between(0.2, 0.8)) / count * canvas.width
        y = draws.between(top, bottom) * canvas.height
        size = draws.between(0.07, 0.13)
        cloud = None
        for k in range(4):
            radius = size * draws.between(0.55, 0.8) * (1.25 if k in (1, 2) else 0.85)
            reach = radius.square() - (canvas.x - x - size * (k - 1.5) * 0.95).square()
            puff = (reach - (canvas.y - y + 0.25 * radius).square()) / (2 * radius)
            cloud = puff if cloud is None else torch.maximum(cloud, puff)
        assert cloud is not None
        cloud = torch.minimum(cloud, y + 0.2 * size - canvas.y)
        depth = cloud if depth is None else torch.maximum(depth, cloud)
    assert depth is not None
    return _paint(image, colour, canvas.cover(depth) * draws.between(0.75, 0.95))


def _disc(canvas: Canvas, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    distance = ((canvas.x - x).square() + (canvas.y - y).square()).sqrt()
    return canvas.cover(radius - distance)


# --- Grounds ----------------------------------------------------------------------------------------------------------


def _plain(draws: Draws, canvas: Canvas, rgb: Tensor) -> Tensor:
    """A colour [B, 3], a little lighter or darker, warmer or colder, lit from above, below or not at all."""
    colour = rgb[..., None, None] + draws.between(-0.016, 0.016, 3, 1, 1) + draws.between(-0.03, 0.03)
    light = draws.between(-0.04, 0.04) * (draws.take(1, 1, 1) < 0.5)
    return (colour + light * (canvas.y / canvas.height - 0.5)).expand(-1, -1, -1, canvas.x.shape[-1])


def _sky(draws: Draws, canvas: Canvas) -> Tensor:
    colours = _rgb(draws, "3f96e6", "79bff2", "cdeafb")
    image = _ramp(colours, [0, 0.55, 1], canvas.y / canvas.height)
    white = _rgb(draws, "ffffff", vary=0.01)[0]
    count = 2 + round(canvas.width)
    image = _clouds(image, draws, canvas, count, white, 0.1, 0.38)
    return _clouds(image, draws, canvas, count, white, 0.62, 0.95)


def _sunset(draws: Draws, canvas: Canvas) -> Tensor:
    colours = _rgb(draws, "4b2a7d", "a23c84", "f2705a", "fdb45c", "ffe08a")
    horizon = draws.between(0.72, 0.8) * canvas.height
    image = _ramp(colours, [0, 0.35, 0.65, 0.88, 1], canvas.y / horizon)
    sun = _rgb(draws, "fff3c4", vary=0.02)[0]
    x, radius = draws.between(0.2, 0.8) * canvas.width, draws.between(0.13, 0.2)
    glow = (1 - ((canvas.x - x).square() + (canvas.y - horizon).square()).sqrt() / (2.6 * radius)).clamp(min=0)
    image = _paint(image, sun, 0.45 * glow.square())
    image = _paint(image, sun, _disc(canvas, x, horizon, radius))
    far, near = _rgb(draws, "7a3464", "3c1d4a", vary=0.03)
    image = _paint(image, far, canvas.cover(canvas.y - _ridge(draws, canvas, horizon, 0.025, 4)))
    below = horizon + draws.between(0.4, 0.55) * (canvas.height - horizon)
    return _paint(image, near, canvas.cover(canvas.y - _ridge(draws, canvas, below, 0.03, 3)))


def _night(draws: Draws, canvas: Canvas) -> Tensor:
    colours = _rgb(draws, "0c1640", "1a3274", "3c64a8", vary=0.03)
    image = _ramp(colours, [0, 0.55, 1], canvas.y / canvas.height)
    stars = _dots(draws, canvas, 0.125, (0.003, 0.0085), 0.75)
    image = _paint(image, _rgb(draws, "fff6d8", vary=0.02)[0], stars)
    far, near = _rgb(draws, "1a2b4f", "0c1526", vary=0.02)
    horizon = draws.between(0.78, 0.86) * canvas.height
    image = _paint(image, far, canvas.cover(canvas.y - _ridge(draws, canvas, horizon - 0.06, 0.04, 3.5)))
    return _paint(image, near, canvas.cover(canvas.y - _ridge(draws, canvas, horizon, 0.025, 3)))


def _meadow(draws: Draws, canvas: Canvas) -> Tensor:
    colours = _rgb(draws, "6fb9ef", "b9e0f7", "e2f4fa")
    horizon = draws.between(0.48, 0.6) * canvas.height
    image = _ramp(colours, [0, 0.6, 1], canvas.y / horizon)
    image = _clouds(image, draws, canvas, 1 + round(canvas.width), _rgb(draws, "ffffff", vary=0.01)[0], 0.1, 0.3)
    hills = _rgb(draws, "8fcf74", "62b956", "459d48")
    near = torch.zeros_like(horizon)
    for n, colour in enumerate(hills):
        level = horizon + n * 0.3 * (canvas.height - horizon)
        near = canvas.cover(canvas.y - _ridge(draws, canvas, level, 0.055 - 0.01 * n, 2.2 + 0.5 * n))
        image = _paint(image, colour, near)
    for colour in _rgb(draws, "ffffff", "ffd84d", "f77fb2", vary=0.03):
        flowers = _dots(draws, canvas, 0.14, (0.008, 0.014), 0.45)
        image = _paint(image, colour, (flowers > 0.2).float() * flowers.clamp(max=1) * near)
    return image


def _ocean(draws: Draws, canvas: Canvas) -> Tensor:
    sky = _rgb(draws, "86c8f3", "dff2fb")
    water = _rgb(draws, "3c9fd6", "1b6fb5", "0f4a8c")
    horizon = draws.between(0.36, 0.5) * canvas.height
    image = _ramp(sky, [0, 1], canvas.y / horizon)
    image = _clouds(image, draws, canvas, 1 + round(canvas.width), _rgb(draws, "ffffff", vary=0.01)[0], 0.08, 0.25)
    deep = (canvas.y - horizon) / (canvas.height - horizon)
    sea = _ramp(water, [0, 0.4, 1], deep)
    image = _paint(image, sea, canvas.cover(canvas.y - horizon))
    crest = _rgb(draws, "d8f2ff", vary=0.02)[0]
    for n in range(5):
        level = horizon + (0.12 + 0.19 * n + draws.between(-0.03, 0.03)) * (canvas.height - horizon)
        thick = 0.003 + 0.0025 * n
        line = _ridge(draws, canvas, level, 0.008 + 0.004 * n, 9 - n)
        broken = torch.sin(canvas.x * draws.between(3, 6) + draws.between(0, 6.3)).clamp(min=0)
        crests = canvas.cover(thick * broken - (canvas.y - line).abs()) * (4 * broken).clamp(max=0.7)
        image = _paint(image, crest, crests)
    return image


def _desert(draws: Draws, canvas: Canvas) -> Tensor:
    sky = _rgb(draws, "7fc4ea", "f3e3bd", "fbd9a0")
    horizon = draws.between(0.45, 0.58) * canvas.height
    image = _ramp(sky, [0, 0.75, 1], canvas.y / horizon)
    lights = _rgb(draws, "eec57f", "e3ad62", "d99a4e", vary=0.04)
    for n, light in enumerate(lights):
        level = horizon + n * 0.3 * (canvas.height - horizon)
        line = _ridge(draws, canvas, level, 0.07 - 0.012 * n, 2 + 0.4 * n)
        dune = canvas.cover(canvas.y - line)
        image = _paint(image, light, dune)
        slope = torch.diff(line, append=2 * line[..., -1:] - line[..., -2:-1]) / canvas.pixel
        lee = canvas.cover(0.9 * slope.clamp(min=0) * draws.between(0.6, 1.0) - (canvas.y - line)) * dune
        image = _paint(image, light * 0.84, lee)
    return image


def _snow(draws: Draws, canvas: Canvas) -> Tensor:
    sky = _rgb(draws, "8fb4d8", "bcd5ea", "dbe8f3", vary=0.035)
    horizon = draws.between(0.52, 0.64) * canvas.height
    image = _ramp(sky, [0, 0.6, 1], canvas.y / horizon)
    hills = _rgb(draws, "c4d6e8", "dfeaf4", "f5f9fd", vary=0.015)
    for n, colour in enumerate(hills):
        level = horizon + n * 0.26 * (canvas.height - horizon)
        line = _ridge(draws, canvas, level, 0.05 - 0.008 * n, 2.4)
        image = _paint(image, colour, canvas.cover(canvas.y - line))
    flakes = _dots(draws, canvas, 0.12, (0.006, 0.016), 0.8)
    return _paint(image, torch.ones_like(hills[0]), flakes)


def _space(draws: Draws, canvas: Canvas) -> Tensor:
    dark, violet, blue = _rgb(draws, "0b0719", "47206f", "2a2f78", vary=0.025)
    rows, columns = max(3, round(3 * canvas.height)), max(3, round(3 * canvas.width))
    size = (canvas.y.shape[2], canvas.x.shape[3])
    mist = F.interpolate(draws.take(2, rows, columns), size, mode="bicubic", align_corners=True).clamp(0, 1).square()
    image = _paint(_paint(dark, violet, 0.9 * mist[:, :1]), blue, 0.6 * mist[:, 1:])
    image = _paint(image, torch.ones_like(dark), _dots(draws, canvas, 0.09, (0.002, 0.0065), 0.75))
    for hexes, side in ((("d08a5a", "5d2f45"), 0.0), (("6fb7b0", "22375c"), 1.0)):
        lit, shaded = _rgb(draws, *hexes, vary=0.1)
        radius = draws.between(0.05, 0.1)
        x = (side + (1 - 2 * side) * draws.between(0.08, 0.16)) * canvas.width
        y = (draws.between(0.08, 0.2) + (0.72 * (draws.take(1, 1, 1) < 0.5))) * canvas.height
        shade = _disc(canvas, x - 0.35 * radius, y - 0.3 * radius, 1.1 * radius)
        image = _paint(image, _paint(shaded, lit, shade), _disc(canvas, x, y, radius))
    return image


def _forest(draws: Draws, canvas: Canvas) -> Tensor:
    """Trunks between the ground and a roof of leaves, which hides their crowns, and a few floating lights."""
    floor = draws.between(0.7, 0.8) * canvas.height
    image = _ramp(_rgb(draws, "2f7a4a", "8fce7f", "dff0b4"), [0, 0.6, 1], canvas.y / floor)
    for count, hex_, half in ((7, "6fa768", 0.012), (4, "5b4334", 0.026)):
        (bark,) = _rgb(draws, hex_)
        trunks = max(1, round(count * canvas.width))
        for n in range(trunks):
            x = (n + draws.between(0.15, 0.85)) / trunks * canvas.width
            foot = floor + draws.between(0.0, 1.5) * half
            flare = (1 - (foot - canvas.y).clamp(min=0) / (6 * half)).clamp(min=0).square()
            wide = half * (draws.between(0.7, 1.3) + 0.8 * flare)
            image = _paint(
                image, bark, torch.minimum(canvas.cover(wide - (canvas.x - x).abs()), canvas.cover(foot - canvas.y))
            )
    for hex_, level in (("2c6e3f", 0.2), ("3f8f48", 0.1)):
        (leaves,) = _rgb(draws, hex_)
        edge = _ridge(draws, canvas, level * canvas.height, 0.035, 9)
        image = _paint(image, leaves, canvas.cover(edge - canvas.y))
    for hex_, depth in (("5a9e46", -0.03), ("3d7d3a", 0.1)):
        (moss,) = _rgb(draws, hex_)
        image = _paint(image, moss, canvas.cover(canvas.y - _ridge(draws, canvas, floor + depth, 0.02, 4)))
    lights = _dots(draws, canvas, 0.16, (0.006, 0.013), 0.4)
    return _paint(image, _rgb(draws, "fff7b8", vary=0.02)[0], lights)


SCENES: dict[str, Callable[[Draws, Canvas], Tensor]] = {
    "sky": _sky,
    "sunset": _sunset,
    "night": _night,
    "meadow": _meadow,
    "ocean": _ocean,
    "desert": _desert,
    "snow": _snow,
    "space": _space,
    "forest": _forest,
}
