"""What a program gets: a generated image, and how far one is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hidream.errors import InvalidInput
from hidream.outputs.encode import encode, pil_image
from hidream.parameter import refused
from hidream.request import BY_NAME
from hidream.types import FORMAT_NAMES, FORMATS, ImageFormat, Size, Timings

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage


@dataclass(frozen=True, eq=False, repr=False)
class Image:
    """A generated image.

    pixels: uint8 [height, width, 3].
    seed: the seed, chosen at random if none was given.
    version: names model, weights, mode, device and release; equal requests, seeds and versions give equal images.
    warnings: what you should know, such as a prompt that was truncated.
    timings: seconds of text encoding, denoising and decoding.
    nsfw: whether the image check flags it (docs/SAFETY.md); None if it was not checked.
    """

    pixels: np.ndarray
    seed: int
    version: str
    warnings: tuple[str, ...]
    timings: Timings
    nsfw: bool | None = None

    @cached_property
    def image(self) -> PilImage:
        """The image as a PIL image."""
        return pil_image(self.pixels)

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        height, width, _ = self.pixels.shape
        return Size(width, height)

    def save(self, path: str | os.PathLike[str], *, quality: int | None = None) -> None:
        """Write a PNG, JPEG, WebP or AVIF file, as the suffix says, with seed and version in its metadata.

        An existing file is replaced, as PIL does. quality: 1 to 100, of the lossy formats. The bytes are those that the
        server delivers. Raises InvalidInput on another suffix, and OSError if the file cannot be written.
        """
        target = Path(os.path.expanduser(path))  # noqa: PTH111 - it leaves a "~" without a home as it is
        suffix = target.suffix.removeprefix(".").lower()
        if suffix not in FORMAT_NAMES:
            suffixes = ", ".join(f".{name}" for name in FORMAT_NAMES)
            raise InvalidInput(f"path is {str(target)!r:.100}; accepted: a name that ends in {suffixes}", field="path")
        target.write_bytes(self.to_bytes(suffix, quality=quality))

    def to_bytes(self, image_format: ImageFormat | str = ImageFormat.PNG, *, quality: int | None = None) -> bytes:
        """Return the bytes of a file, which `save` would write. Raises InvalidInput on an unknown format."""
        kind = BY_NAME["output_format"].kind.read("image_format", image_format)
        if quality is not None:
            quality = BY_NAME["output_quality"].kind.read("quality", quality)
            if FORMATS[kind].quality is None:
                raise refused("quality", quality, f"none for {FORMATS[kind].label}, which is lossless")
        return encode(self.pixels, kind, seed=self.seed, version=self.version, output_quality=quality)

    def _repr_png_(self) -> bytes:
        """Show the image in a notebook."""
        return self.to_bytes()

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.pixels, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        flagged = ", nsfw" * bool(self.nsfw)
        return f"<hidream.Image {self.size}, seed {self.seed}, {self.version}{flagged}>"


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """How far an image is: `done` of `of` steps; a preview if one is due; and at the end the image itself.

    preview: a PIL image with one pixel for each latent cell, 128 × 128 for 1024² of the published model.
    """

    done: int
    of: int
    preview: PilImage | None = None
    image: Image | None = None
