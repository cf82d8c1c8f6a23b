"""What is on an image: one or two objects in a style, a layout, a number, a size and a background.

Pure Python: knows no pixels (`placement.py`, `compose.py`) and no words (`captions.py`). Which combinations are kept
for evaluation is decided here, by a hash, so that no stage of training can meet them.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from enum import StrEnum

from concepts import Concepts

HELD_OUT_PERMILLE = 50
"""Share of the combinations of object, style, background and layout that training never sees."""

WIDE = 1.5
"""From this aspect on (and from its inverse down) two objects stand only along the longer side."""
STRIP = 2.2
"""From this aspect on (and from its inverse down) there is no room for a big object."""


class Layout(StrEnum):
    """How the objects stand to each other; AND is side by side, or one above the other where the image is tall."""

    SINGLE = "single"
    AND = "and"
    LEFT_OF = "left of"
    ABOVE = "above"


class Extent(StrEnum):
    """How large a single object is in the image."""

    SMALL = "small"
    NORMAL = "normal"
    BIG = "big"


class Split(StrEnum):
    """Which combinations may be drawn."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class Scene:
    """An image in names; the first object is the left or upper one. Only one object is counted, small or big."""

    objects: tuple[str, ...]
    style: str
    background: str
    layout: Layout = Layout.SINGLE
    count: int = 1
    extent: Extent = Extent.NORMAL

    def __post_init__(self) -> None:
        pair = self.layout is not Layout.SINGLE
        assert len(self.objects) == 1 + pair, f"{self.layout} wants {1 + pair} objects, not {self.objects}"
        assert 1 <= self.count <= 3, f"count is {self.count}; 1 to 3 can be drawn"
        assert not pair or self.count == 1, "two different objects are not counted"
        assert self.extent is Extent.NORMAL or (self.count == 1 and not pair), "only a single object is small or big"


def draw_scene(rng: random.Random, split: Split | str, concepts: Concepts, aspect: float = 1.0) -> Scene:
    """A random scene of `split` that an image of `aspect` (width / height) has room for."""
    split = Split(split)
    while True:
        scene = _draw_any(rng, concepts, aspect)
        if held_out(scene) == (split is Split.HELD_OUT):
            return scene


def held_out(scene: Scene) -> bool:
    """Whether the scene's combination of objects, style, background and layout is kept for evaluation.

    Number and extent do not count: 'two cats' is held out where 'a cat' is. So do the places of an AND.
    """
    objects = sorted(scene.objects) if scene.layout is Layout.AND else scene.objects
    key = "|".join((*objects, scene.style, scene.background, scene.layout))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 1000 < HELD_OUT_PERMILLE


def _draw_any(rng: random.Random, concepts: Concepts, aspect: float) -> Scene:
    style, background = rng.choice(list(concepts.styles)), rng.choice(list(concepts.backgrounds))
    names = list(concepts.objects)
    layout = _draw_layout(rng, aspect)
    if layout is not Layout.SINGLE:
        return Scene(tuple(rng.sample(names, 2)), style, background, layout)
    name = rng.choice(names)
    count = 1 if concepts.objects[name].mass else rng.choices((1, 2, 3), (78, 13, 9))[0]
    big = 30 if 1 / STRIP < aspect < STRIP else 0
    extent = rng.choices(tuple(Extent), (30, 70 - big, big))[0] if count == 1 else Extent.NORMAL
    return Scene((name,), style, background, layout, count, extent)


def _draw_layout(rng: random.Random, aspect: float) -> Layout:
    left_of = 0 if aspect < 1 / WIDE else 10
    above = 0 if aspect > WIDE else 10
    return rng.choices(tuple(Layout), (68, 12, left_of, above))[0]
