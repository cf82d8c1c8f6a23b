"""The types that several rooms share: variants, choices of a request, file formats, states of a task, sizes.

`request.py` declares the parameters that are made of them. Standard library only. A type that a single room uses lives
in that room.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Self, TypeVar

from hidream.errors import InvalidInput

Preview = TypeVar("Preview", covariant=True)
"""A preview: pixels [h, w, 3] of uint8 in the model, the engine and the worker, a JPEG file in the store."""

SEED_MAX = 9_999_999_999
"""Largest seed that is accepted (the seed document's range is −1 to 9999999999; −1 asks for a random one)."""
RANDOM_SEEDS = 2**31
"""Random seeds are below this, where v3's documents end: any client can send them again."""

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
QUALITY_MAX = 100
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
        """Steps that an image takes unless its request says another number."""
        return SAMPLING_PRESETS[self].steps


MODELS = {f"wavespeed-ai/hidream-i1-{variant}": variant for variant in Variant}
"""The API's names of the models that there are; which of them are served, says the configuration."""


class Render(StrEnum):
    """The shape in which the model generates, before the image gets the requested size.

    BEST: REFINE if the requested size is well above the model's best area and the model can refine, else SCALED.
    SCALED: the model's own best area, in the legal shape nearest to the requested aspect, then scaled; no padding.
    NATIVE: the requested size itself, rounded up to a legal shape; no padding.
    REFINE: first SCALED, then the latent is enlarged to the requested size, noised and denoised again.
    REFERENCE: the shape of the reference pipelines: their rounding, and padded keys if it is not square.
    """

    BEST = "best"
    SCALED = "scaled"
    NATIVE = "native"
    REFINE = "refine"
    REFERENCE = "reference"


class Sampler(StrEnum):
    """How noise becomes an image; `model/sampling/sampler.py` holds their steps.

    FLASH: predict the image, noise it afresh (Dev and Fast).
    UNIPC: a multistep solver of second order (Full).
    EULER: one straight step at a time, without fresh noise: what others offer for flow-matching models.
    """

    FLASH = "flash"
    UNIPC = "unipc"
    EULER = "euler"


@dataclass(frozen=True, slots=True)
class SamplingPreset:
    """How a variant is meant to be sampled (the model cards')."""

    steps: int
    guidance: float
    shift: float
    sampler: Sampler


SAMPLING_PRESETS = {
    Variant.DEV: SamplingPreset(steps=28, guidance=0.0, shift=6.0, sampler=Sampler.FLASH),
    Variant.FULL: SamplingPreset(steps=50, guidance=5.0, shift=3.0, sampler=Sampler.UNIPC),
    Variant.FAST: SamplingPreset(steps=16, guidance=0.0, shift=3.0, sampler=Sampler.FLASH),
}
"""What a request's `steps`, `guidance`, `shift` and `sampler` are where it names none."""
USUAL_STEPS = SAMPLING_PRESETS[Variant.DEV].steps
"""Steps of the unit in which work is shown to people, and of a task whose model is unknown here."""
USUAL_WORK = 1024 * 1024 * USUAL_STEPS
"""The work of a usual image in pixel steps: the unit of `[worker] pictures_max`, and of a level of priority."""
PRIORITY_MAX = 4
"""The priority of a key is −4 to 4."""


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
    """How much quality may be traded for speed: numbers in `model/sampling/step_cache.py`, cost in docs/PERFORMANCE.md.

    EXACT: nothing. BALANCED, TURBO: some steps do not evaluate the model; the image is nearly the same.
    """

    EXACT = "exact"
    BALANCED = "balanced"
    TURBO = "turbo"


class ImageFormat(StrEnum):
    """File formats in which images are delivered; `FORMATS` says what each of them is."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    AVIF = "avif"


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A file format: `quality` is used unless a request names another, None where the format is lossless.

    `suffixes` are all names of the format, its own first. `readable`: an image to start from may be such a file.
    """

    label: str
    media_type: str
    suffixes: tuple[str, ...]
    quality: int | None
    readable: bool


FORMATS = {
    ImageFormat.PNG: FileFormat("PNG", "image/png", ("png",), quality=None, readable=True),
    ImageFormat.JPEG: FileFormat("JPEG", "image/jpeg", ("jpeg", "jpg"), quality=95, readable=True),
    ImageFormat.WEBP: FileFormat("WebP", "image/webp", ("webp",), quality=90, readable=True),
    ImageFormat.AVIF: FileFormat("AVIF", "image/avif", ("avif",), quality=80, readable=False),
}
"""Measured on nano's images at 1024² with the settings of `outputs/encode.py`. JPEG 95: 51.3 dB in 6 ms and 119 KiB.
WebP 90: 47.5 dB in 34 ms and 21 KiB; quality 95 is 48.6 dB in 37 KiB, since lossy WebP always halves colours.
AVIF 80: 47.3 dB and 23 KiB, in 1.5 times WebP's time; quality 75 is 47.0 dB in 20 KiB, 90 is 47.9 dB in 38 KiB. With a
photo's noise it is as good as WebP 90 in 191 KiB instead of 233."""
FORMAT_NAMES = {suffix: image_format for image_format, file in FORMATS.items() for suffix in file.suffixes}
READABLE = tuple(image_format for image_format, file in FORMATS.items() if file.readable)
LOSSY = tuple(image_format for image_format, file in FORMATS.items() if file.quality is not None)


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
        """Whether this state is final: the task is finished."""
        return self not in (Status.CREATED, Status.PROCESSING)


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height of an image in pixels."""

    width: int
    height: int

    @classmethod
    def parse(cls, text: str, smallest_px: int = SIDE_MIN_PX, largest_px: int = SIDE_MAX_PX) -> Self:
        """Read "W*H" or "WxH". Raises InvalidInput when it is neither, or a side is out of range."""
        match = re.fullmatch(r"([0-9]{1,6})[*xX]([0-9]{1,6})", text.strip())
        accepted = f"accepted: width*height, each {smallest_px} to {largest_px}, such as 1024*1024"
        if not match:
            raise InvalidInput(f"size is {text!r:.100}; {accepted}", field="size")
        size = cls(int(match[1]), int(match[2]))
        if not (smallest_px <= size.width <= largest_px and smallest_px <= size.height <= largest_px):
            raise InvalidInput(f"size is {text!r:.100}; {accepted}", field="size")
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
class Step(Generic[Preview]):
    """A step of an image or a task: `done` steps `of` all of them are done. `preview` shows the image so far, if made.

    The same record passes from the model to the client of an event stream.
    """

    done: int
    of: int
    preview: Preview | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one image went, in seconds of model time."""

    text_s: float
    denoise_s: float
    decode_s: float

    @property
    def inference_s(self) -> float:
        """Model time in all: text, denoising and decoding; neither queue nor file encoding."""
        return self.text_s + self.denoise_s + self.decode_s


def check_file(field: str, width: int, height: int) -> None:
    """See that an image file is no larger than is accepted. Raises InvalidInput, which names the field."""
    if width * height > FILE_PIXELS_MAX or max(width, height) > FILE_SIDE_MAX_PX:
        raise InvalidInput(f"{field} has {width}*{height} pixels; {FILE_ACCEPTED}")
