"""The words that several rooms share: what is asked for, which states a task goes through, which formats exist.

Standard library only. A type that a single room uses lives in that room.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SEED_MAX = 9_999_999_999
"""Largest seed that is accepted (the seed document's range is −1 to 9999999999; −1 asks for a random one)."""

PROMPT_MAX_CHARS = 10_000
SIDE_MAX_PX = 1536


class Variant(StrEnum):
    """The three published checkpoints of HiDream-I1."""

    DEV = "dev"
    FULL = "full"
    FAST = "fast"


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


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height of a picture in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}*{self.height}"


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One picture: everything that decides its pixels.

    `steps`, `guidance` and `shift` of None mean the variant's own (`model/config.py: RECIPES`). `seed` is the seed
    that is used: a random one is drawn by whoever makes the request, so that it can be written down first.
    """

    prompt: str
    size: Size
    seed: int
    negative_prompt: str = ""
    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    render: Render = Render.BEST


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
