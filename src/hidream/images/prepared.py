"""Prepares an init image and its mask for the model: cropped and scaled to each size that is needed.

The image is cropped before it is scaled, one channel after the other, some rows at a time. So only a few megabytes at a
time are float32 at the file's size, and memory depends on the output's size, however large the file is.
`model/latents/shape.fit` does the same in torch, with images that the model has generated.

    H, W  height and width of a size
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hidream.errors import InvalidInput
from hidream.images.image_file import Decoded, open_image, srgb
from hidream.types import Size

HALF = 128
"""Of 255: from this value on, a mask counts as white and alpha as opaque."""
SPARE = 4
"""What of an image is scaled at most, in sizes that are cut out of it: 16:9 for 9:16, which is 3.2, stays whole."""
BICUBIC_REACH = 2
"""Pixels to either side from which bicubic interpolation makes one, where it enlarges."""
BAND_PIXELS = 2**22
"""Pixels of the file that are floating point numbers at a time: 16 MiB."""


@dataclass(frozen=True, slots=True)
class Planes:
    """The image at one size: float32 [3, H, W] in −1 to 1, on white where it was transparent.

    `mask`, bool [1, H, W], is where it may change, None for everywhere; `alpha`, float32 [1, H, W] in 0 to 1, is how
    far it covers what is generated beneath it, None for all of it.
    """

    image: np.ndarray
    mask: np.ndarray | None
    alpha: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """The image at every size that is needed of it, and what its user should know of the files."""

    planes: Mapping[Size, Planes]
    warnings: tuple[str, ...]


def prepare(
    sizes: Iterable[Size], image: bytes, mask: bytes | None, formats: tuple[str, ...] | None = None
) -> Prepared:
    """Prepare an image and its mask for these sizes. Raises InvalidInput if they cannot be used."""
    decoded = open_image("image", image, formats)
    may_change, warnings = _mask_of(decoded, mask, formats)
    colours, profile_warnings = srgb("image", decoded)
    planes = {size: _planes(colours, may_change, decoded.alpha, size, mask is None) for size in sizes}
    if any(each.mask is not None and not each.mask.any() for each in planes.values()):
        warnings += ("the mask lets no part of the image change; make the parts that may change white or transparent",)
    return Prepared(planes, decoded.warnings + profile_warnings + warnings)


def _mask_of(
    image: Decoded, data: bytes | None, formats: tuple[str, ...] | None
) -> tuple[Image.Image | None, tuple[str, ...]]:
    """Return where the image may change, as 255 in a mask of its size, None for everywhere; and warnings."""
    if data is None:
        return _transparent(image)
    mask = open_image("mask", data, formats)
    if mask.colours.size != image.colours.size:
        given, wanted = mask.colours, image.colours
        raise InvalidInput(
            f"mask is {given.width}*{given.height} pixels and image {wanted.width}*{wanted.height}; "
            "accepted: equal sizes"
        )
    may_change, warnings = _transparent_or_light(mask)
    return may_change, mask.warnings + warnings


def _transparent(image: Decoded) -> tuple[Image.Image | None, tuple[str, ...]]:
    """Use the image's own alpha as its mask, as OpenAI's API does."""
    if image.alpha is None:
        return None, ()
    remedy = "to let all of it change as it looks on white, send it without transparency"
    if not any(image.alpha.histogram()[:HALF]):
        return None, ("image is translucent, but nowhere by half: it is blended over white, and all of it may change",)
    warning = f"image has transparent parts and no mask: only they may change, starting from white; {remedy}"
    return _below_half(image.alpha), (warning,)


def _transparent_or_light(mask: Decoded) -> tuple[Image.Image, tuple[str, ...]]:
    """Read a mask: by its alpha if any of it is transparent, else by its brightness."""
    light = mask.colours.convert("L").point([0] * HALF + [255] * HALF)
    if mask.alpha is None or not any(mask.alpha.histogram()[:HALF]):
        return light, ()
    transparent = _below_half(mask.alpha)
    opaque_light = Image.composite(Image.new("L", light.size), light, transparent)
    if not any(opaque_light.histogram()[HALF:]):
        return transparent, ()
    warning = (
        "mask has transparent parts and light ones: only the transparent ones may change; "
        "to let the light ones change, send it without transparency"
    )
    return transparent, (warning,)


def _below_half(alpha: Image.Image) -> Image.Image:
    return alpha.point([255] * HALF + [0] * HALF)


def _planes(
    colours: Image.Image, mask: Image.Image | None, alpha: Image.Image | None, size: Size, without_mask: bool
) -> Planes:
    """Scale an image to a size. `without_mask`, its alpha limits how much of it is kept."""
    image = np.stack([fitted(colours.getchannel(band), size, 127.5, 1) for band in colours.getbands()])
    if mask is None:
        return Planes(image, None, None)
    may_change = fitted(mask, size, 255, 0)[None] >= 0.5
    if alpha is None:
        return Planes(image, may_change, None)
    covering = fitted(alpha, size, 255, 0)[None].clip(0, 1)
    return Planes(image, may_change, covering if without_mask else np.where(may_change, covering, np.float32(1)))


def fitted(plane: Image.Image, size: Size, one: float, zero: float) -> np.ndarray:
    """Scale a plane of bytes to cover `size`, and crop the centre: values / `one` − `zero`, float32 [H, W].

    The filter is bicubic, wider for downscaling, as in Pillow and torch. The aspect ratio is kept.
    """
    scale = max(size.width / plane.width, size.height / plane.height)
    plane = _middle(plane, size, scale)
    if scale == 1:
        wide, high = plane.size
        values = _values(plane, one, zero)
    else:
        wide = max(round(plane.width * scale), size.width)
        high = max(round(plane.height * scale), size.height)
        values = _scaled_rows(plane, wide, size.width, one, zero)
        values = np.asarray(Image.fromarray(values).resize((values.shape[1], high), Image.Resampling.BICUBIC))
        wide = size.width  # `_scaled_rows` has cut it
    left, top = (wide - size.width) // 2, (high - size.height) // 2
    return np.ascontiguousarray(values[top : top + size.height, left : left + size.width])


def _middle(plane: Image.Image, size: Size, scale: float) -> Image.Image:
    """Crop a plane to the region that `fitted` needs, with a margin: SPARE times the size is kept.

    This comes before scaling: 2000 × 1 pixels would cover 1024² with two million columns.
    """
    top = max(0, plane.height // 2 - math.ceil(size.height / scale * SPARE / 2) - BICUBIC_REACH)
    left = max(0, plane.width // 2 - math.ceil(size.width / scale * SPARE / 2) - BICUBIC_REACH)
    return plane.crop((left, top, plane.width - left, plane.height - top))


def _scaled_rows(plane: Image.Image, wide: int, width: int, one: float, zero: float) -> np.ndarray:
    """Scale the rows of a plane to `wide` columns, and keep the `width` in the middle: float32 [H, width]."""
    out = np.empty((plane.height, width), np.float32)
    left, rows = (wide - width) // 2, max(1, BAND_PIXELS // max(plane.width, wide))
    for top in range(0, plane.height, rows):
        bottom = min(top + rows, plane.height)
        band = Image.fromarray(_values(plane.crop((0, top, plane.width, bottom)), one, zero))
        scaled = band.resize((wide, bottom - top), Image.Resampling.BICUBIC)
        out[top:bottom] = np.asarray(scaled)[:, left : left + width]
    return out


def _values(plane: Image.Image, one: float, zero: float) -> np.ndarray:
    return np.asarray(plane, np.float32) / np.float32(one) - np.float32(zero)
