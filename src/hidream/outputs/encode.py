"""Pixels to the bytes of a file that says how to generate the image again.

Each file carries the seed and the version of the model, and nothing of the prompt: PNG as text chunks, the others as a
JSON object in EXIF's UserComment. Equal pixels with equal metadata give equal bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from hidream.types import FORMATS, ImageFormat

OPTIONS: Mapping[ImageFormat, Mapping[str, Any]] = {
    ImageFormat.PNG: {"compress_type": Image.RLE},
    ImageFormat.JPEG: {"subsampling": "4:4:4"},
    ImageFormat.WEBP: {"method": 2},
    ImageFormat.AVIF: {"codec": "aom", "max_threads": 1, "speed": 8, "subsampling": "4:4:4"},
}
"""How Pillow writes each format; `types.FORMATS` has the qualities (benchmarks/decode.py measures all of it).

PNG: behind PNG's filters zlib looks for runs of one byte only, whatever the level. nano's images at 1024² become 384
KiB in 48 ms of a CPU; level 1 of the default strategy makes 517 KiB in 45 ms, level 6 379 in 144, level 9 341 in 1428.
An image with a photo's noise becomes 2606 KiB in 91 ms, with levels 1 to 9 2638 to 2606 in 148 to 162. Only patterns
that repeat to the byte come out larger, and models draw none.
JPEG: halved colours (4:2:0) save 30 % and lose 0.8 dB, on a noisy image 5 dB; an optimal code saves 3 to 7 % in two to
three times the time.
WebP: method 0 makes 26 KiB in 29 ms, 4 and 6 make 21 in 80 and 108.
AVIF: with more threads libavif cuts the image into tiles, and the bytes would depend on the machine. Speed 6 saves 12 %
in 3.5 times the time, 10 costs 4 % and saves a fifth of it; halved colours save nothing."""

_WORKFLOW_TAGS = (ExifTags.Base.Model, ExifTags.Base.Make, ExifTags.Base.ImageDescription)
"""Where ComfyUI has its texts in EXIF, the prompt first (comfy_api/latest/_ui.py, `_create_webp_metadata`)."""
_ASCII_COMMENT = b"ASCII\0\0\0"
"""What EXIF wants in front of a UserComment, to name its character code."""


def encode(
    pixels: np.ndarray,
    output_format: ImageFormat,
    *,
    seed: int | None,
    version: str | None,
    output_quality: int | None = None,
    workflow: Mapping[str, str] | None = None,
) -> bytes:
    """Encode uint8 pixels [height, width, 3].

    seed, version: None where they are not known, of images that others generated.
    output_quality: 1 to 100, of the lossy formats; None: what is best for most. PNG loses nothing, whatever it says.
    workflow: ComfyUI's own texts by name ("prompt", "workflow"), where ComfyUI writes and reads them.
    """
    assert output_quality is None or 1 <= output_quality <= 100, f"checked where requests are: {output_quality}"
    known = {"Software": "hidream", "seed": None if seed is None else str(seed), "version": version}
    metadata = {name: text for name, text in known.items() if text is not None}
    options = {**OPTIONS[output_format]}
    if output_format is ImageFormat.PNG:
        options["pnginfo"] = _text_chunks(metadata | dict(workflow or {}))
    else:
        exif = _exif(metadata, workflow or {})
        options |= {"quality": output_quality or FORMATS[output_format].quality, "exif": exif}
    file = io.BytesIO()
    pil_image(pixels).save(file, output_format.upper(), **options)
    return file.getvalue()


def pil_image(pixels: np.ndarray) -> Image.Image:
    """Make a PIL image of uint8 pixels [height, width, 3].

    It puts the planes together, as which a model's pixels lie in memory: NumPy takes 15 times as long to gather them.
    """
    return Image.merge("RGB", [Image.fromarray(plane) for plane in np.moveaxis(pixels, -1, 0)])


def _text_chunks(metadata: dict[str, str]) -> PngInfo:
    chunks = PngInfo()
    for key, value in metadata.items():
        chunks.add_text(key, value)
    return chunks


def _exif(metadata: dict[str, str], workflow: Mapping[str, str]) -> Image.Exif:
    exif = Image.Exif()
    for tag, (name, text) in zip(_WORKFLOW_TAGS, workflow.items(), strict=False):
        exif[tag] = f"{name}:{text}"
    exif[ExifTags.Base.Software] = metadata["Software"]
    comment = _ASCII_COMMENT + json.dumps(metadata).encode("ascii")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif
