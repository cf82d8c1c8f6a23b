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
SIDE_MIN_PX, SIDE_MAX_PX = 256, 2048
"""Sides of images over v3, OpenAI's routes and the command line; v2 keeps its documents' range, 512 to 1536."""
ROUND_PX = 16
"""Sides that are computed are multiples of this: what the published model generates without scaling."""
STEPS_MAX = 200
GUIDANCE_MAX = 30.0
SHIFT_MIN, SHIFT_MAX = 0.1, 100.0
STRENGTH, STRENGTH_MIN = 0.8, 0.01
FILE_PIXELS_MAX, FILE_SIDE_MAX_PX = 2**26, 2**16
"""Of an image that a request brings: 8192², more than any camera's and less than a decompression bomb's. Pillow takes
tens of bytes for each row, so that 2^26 rows of one pixel would be gigabytes."""
FILE_ACCEPTED = f"accepted: {FILE_PIXELS_MAX} in all, {FILE_SIDE_MAX_PX} a side"
IMAGES_MAX = 4
LORA_WEIGHT_MAX = 10.0
LORAS_MAX = 8


class Variant(StrEnum):
    """The three published checkpoints of HiDream-I1."""

    DEV = "dev"
    FULL = "full"
    FAST = "fast"

    @property
    def guided(self) -> bool:
        """Whether it takes guidance and a negative prompt; the others were distilled, and guidance spoils them."""
        return self is Variant.FULL

    @property
    def steps(self) -> int:
        """Steps that an image takes unless its request says another number (the model cards')."""
        return {Variant.DEV: 28, Variant.FULL: 50, Variant.FAST: 16}[self]


MODELS = {f"wavespeed-ai/hidream-i1-{variant}": variant for variant in Variant}
"""The API's names of the models that there are; which of them are served, says the configuration."""


class Render(StrEnum):
    """Which shape the model itself draws, before the picture is brought to the size that was asked.

    BEST: REFINE where the asked size is well above the model's best area and the model can, else SCALED.
    SCALED: the model's own best area, in the legal shape nearest to the asked aspect, then scaled; no padding.
    NATIVE: the asked size itself, rounded up to a legal shape; no padding.
    REFINE: first SCALED, then the latent enlarged to the asked size, noised and denoised again.
    REFERENCE: what the reference pipelines draw: their rounding, and padded keys where it is not square.
    """

    BEST = "best"
    SCALED = "scaled"
    NATIVE = "native"
    REFINE = "refine"
    REFERENCE = "reference"


class Sampler(StrEnum):
    """How noise becomes a picture; `model/sampling/sampler.py` holds their steps.

    FLASH: predict the picture, noise it afresh (Dev and Fast).
    UNIPC: a multistep solver of second order (Full).
    EULER: one straight step at a time, without fresh noise: what others offer for flow-matching models.
    """

    FLASH = "flash"
    UNIPC = "unipc"
    EULER = "euler"


class Conformance(StrEnum):
    """Which of the two references is followed where they differ (`docs/REFERENCES.md`)."""

    DIFFUSERS = "diffusers"
    OFFICIAL = "official"


class WeightFormat(StrEnum):
    """In which type the large matrices are kept; products are always computed in the compute type.

    COMPUTE: in the compute type.
    STORED: as the file has them, straight from its memory map where they stay on the CPU.
    FP8, INT8, NF4: quantised while loading, unless the file's own are as small.
    """

    COMPUTE = "compute"
    STORED = "stored"
    FP8 = "fp8"
    INT8 = "int8"
    NF4 = "nf4"


class Mode(StrEnum):
    """What a picture may lose for speed: numbers in `model/sampling/step_cache.py`, their cost in docs/PERFORMANCE.md.

    EXACT: nothing. BALANCED, TURBO: some steps do not ask the model, for a picture that is nearly the same.
    """

    EXACT = "exact"
    BALANCED = "balanced"
    TURBO = "turbo"


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
    CANCELLED = "cancelled"
    DELETED = "deleted"

    @property
    def final(self) -> bool:
        """Whether a task in this state is drawn no more."""
        return self not in (Status.CREATED, Status.PROCESSING)


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height of a picture in pixels."""

    width: int
    height: int

    @classmethod
    def parse(cls, text: str, smallest_px: int = SIDE_MIN_PX, largest_px: int = SIDE_MAX_PX) -> Self:
        """Read "W*H" or "WxH". Raises InvalidInput when it is neither, or a side is out of range."""
        match = re.fullmatch(r"([0-9]{1,6})[*xX]([0-9]{1,6})", text.strip())
        accepted = f"accepted: width*height, each {smallest_px} to {largest_px}, such as 1024*1024"
        if not match:
            raise InvalidInput(f"size is {text!r:.100}; {accepted}")
        size = cls(int(match[1]), int(match[2]))
        if not (smallest_px <= size.width <= largest_px and smallest_px <= size.height <= largest_px):
            raise InvalidInput(f"size is {text!r:.100}; {accepted}")
        return size

    @classmethod
    def near(cls, width: int, height: int, smallest_px: int = SIDE_MIN_PX, largest_px: int = SIDE_MAX_PX) -> Self:
        """Choose a size for an image of this size: its own if both sides are in range, else scaled until they are.

        Scaled sides are multiples of ROUND_PX. Of an aspect that no scale brings into range, the longer side is the
        largest and the shorter one the smallest: such an image is cut.
        """
        shorter, longer = sorted((width, height))
        if smallest_px <= shorter and longer <= largest_px:
            return cls(width, height)
        scale = largest_px / longer if longer > largest_px else smallest_px / shorter
        sides = (round(side * scale / ROUND_PX) * ROUND_PX for side in (width, height))
        return cls(*(min(max(side, smallest_px), largest_px) for side in sides))

    def __str__(self) -> str:
        return f"{self.width}*{self.height}"


DEFAULT_SIZE = Size(1024, 1024)


@dataclass(frozen=True, slots=True)
class Prompts:
    """One picture's prompt, and what single text encoders are told instead.

    None means the prompt itself; an empty text is an empty text (the reference takes it for None).
    """

    prompt: str
    clip_l: str | None = None
    clip_g: str | None = None
    t5: str | None = None
    llama: str | None = None

    @property
    def each(self) -> tuple[str, str, str, str]:
        """What CLIP-L, CLIP-G, T5 and Llama are told."""
        clip_l, clip_g, t5, llama = (
            self.prompt if own is None else own for own in (self.clip_l, self.clip_g, self.t5, self.llama)
        )
        return clip_l, clip_g, t5, llama


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA by the name under which the model knows it, and how strongly it is applied."""

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check(f"weight of the LoRA {self.name!r}", self.weight, -LORA_WEIGHT_MAX, LORA_WEIGHT_MAX)


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One picture: everything that decides its pixels.

    `steps`, `guidance`, `shift` and `sampler` of None mean the variant's own (`SAMPLING_PRESETS` in
    `model/network/config.py`).
    `seed` is the seed that is used: a random one is drawn by whoever makes the request, so that it can be written down
    first.

    `image` is the content of a file to start from, or empty where its pixels come beside the request; `strength` the
    share of the steps that are taken: 1 ignores the picture's details, near 0 hardly changes it. `mask` is one of equal
    size, white where the picture may change, or transparent there if any of it is. Without one, what is transparent in
    the image may change.
    `prompt` may tell single text encoders something else.

    Raises InvalidInput, or MissingInput without a prompt.
    """

    prompt: str | Prompts
    size: Size
    seed: int
    negative_prompt: str = ""
    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    sampler: Sampler | None = None
    conformance: Conformance = Conformance.DIFFUSERS
    render: Render = Render.BEST
    mode: Mode = Mode.EXACT
    image: bytes | None = None
    strength: float = STRENGTH
    mask: bytes | None = None
    loras: tuple[LoraUse, ...] = ()

    def __post_init__(self) -> None:
        if not (self.prompt if isinstance(self.prompt, str) else self.prompt.prompt).strip():
            raise MissingInput("prompt is empty; accepted: a text that says what to draw")
        _check("seed", self.seed, 0, SEED_MAX)
        _check("width", self.size.width, 1, SIDE_MAX_PX)
        _check("height", self.size.height, 1, SIDE_MAX_PX)
        _check("steps", self.steps, 1, STEPS_MAX)
        _check("guidance", self.guidance, 0, GUIDANCE_MAX)
        _check("shift", self.shift, SHIFT_MIN, SHIFT_MAX)
        _check("strength", self.strength, STRENGTH_MIN, 1)
        if self.mask is not None and self.image is None:
            raise MissingInput("mask is given without an image; accepted: a mask of the image to change")


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


def check_file(field: str, width: int, height: int) -> None:
    """See that an image file is no larger than is accepted. Raises InvalidInput, which names the field."""
    if width * height > FILE_PIXELS_MAX or max(width, height) > FILE_SIDE_MAX_PX:
        raise InvalidInput(f"{field} has {width}*{height} pixels; {FILE_ACCEPTED}")
