"""The words that several rooms share: what is asked for, which states a task goes through, which formats exist.

Standard library only. A type that a single room uses lives in that room.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from hidream.errors import InvalidInput, MissingInput

SEED_MAX = 9_999_999_999
"""Largest seed that is accepted (the seed document's range is −1 to 9999999999; −1 asks for a random one)."""

PROMPT_MAX_CHARS = 10_000
SIDE_MAX_PX = 1536
STEPS_MAX = 200
GUIDANCE_MAX = 30.0
SHIFT_MIN, SHIFT_MAX = 0.1, 100.0


class Variant(StrEnum):
    """The three published checkpoints of HiDream-I1."""

    DEV = "dev"
    FULL = "full"
    FAST = "fast"


MODELS = {"wavespeed-ai/hidream-i1-dev": Variant.DEV}
"""The API's names of the models that are served."""


class Render(StrEnum):
    """Which shape the model itself draws, before the picture is brought to the size that was asked.

    BEST: the model's own best area, in the legal shape nearest to the asked aspect; no padding.
    NATIVE: the asked size itself, rounded up to a legal shape; no padding.
    REFERENCE: what the reference pipelines draw: their rounding, and padded keys where it is not square.
    """

    BEST = "best"
    NATIVE = "native"
    REFERENCE = "reference"


class ImageFormat(StrEnum):
    """File formats that a picture can be delivered in."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


class Status(StrEnum):
    """States of a prediction; `store/predictions.py` holds the transitions."""

    CREATED = "created"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether a task in this state stays as it is."""
        return self in (Status.COMPLETED, Status.FAILED)


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height of a picture in pixels."""

    width: int
    height: int

    @classmethod
    def parse(cls, text: str, smallest_px: int, largest_px: int = SIDE_MAX_PX) -> Self:
        """Read "W*H" or "WxH". Raises InvalidInput when it is neither, or a side is out of range."""
        match = re.fullmatch(r"([0-9]{1,6})[*xX]([0-9]{1,6})", text.strip())
        accepted = f"accepted: width*height, each {smallest_px} to {largest_px}, such as 1024*1024"
        if not match:
            raise InvalidInput(f"size is {text!r:.100}; {accepted}")
        size = cls(int(match[1]), int(match[2]))
        if not (smallest_px <= size.width <= largest_px and smallest_px <= size.height <= largest_px):
            raise InvalidInput(f"size is {text!r:.100}; {accepted}")
        return size

    def __str__(self) -> str:
        return f"{self.width}*{self.height}"


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One picture: everything that decides its pixels.

    `steps`, `guidance` and `shift` of None mean the variant's own (`model/config.py: RECIPES`). `seed` is the
    seed that is used: a random one is drawn by whoever makes the request, so that it can be written down
    first.

    Raises InvalidInput, or MissingInput without a prompt.
    """

    prompt: str
    size: Size
    seed: int
    negative_prompt: str = ""
    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    render: Render = Render.BEST

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise MissingInput("prompt is empty; accepted: a text that says what to draw")
        _check("seed", self.seed, 0, SEED_MAX)
        _check("width", self.size.width, 1, SIDE_MAX_PX)
        _check("height", self.size.height, 1, SIDE_MAX_PX)
        _check("steps", self.steps, 1, STEPS_MAX)
        _check("guidance", self.guidance, 0, GUIDANCE_MAX)
        _check("shift", self.shift, SHIFT_MIN, SHIFT_MAX)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one picture went, in seconds of model time."""

    text_s: float
    denoise_s: float
    decode_s: float

    @property
    def inference_s(self) -> float:
        """Model time in all: text, denoising and decoding; neither queue nor file encoding."""
        return self.text_s + self.denoise_s + self.decode_s


def _check(name: str, value: float | None, smallest: float, largest: float) -> None:
    if value is not None and not smallest <= value <= largest:
        raise InvalidInput(f"{name} is {value}; accepted: {smallest} to {largest}")
