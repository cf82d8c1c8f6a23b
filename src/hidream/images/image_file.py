"""Decodes image files of any mode, depth, colour profile and orientation that Pillow reads.

The result is an upright image of 8 bits a channel, composited on white where it is transparent, and its alpha channel.
`srgb` converts the colours to sRGB by the file's ICC profile; PNG's gAMA, cHRM and cICP are ignored. This file knows
neither sizes nor masks. It turns whatever Pillow raises on untrusted bytes into InvalidInput; against other damage,
untrusted files are decoded in separate processes (`decoders`).
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from hidream.errors import InvalidInput
from hidream.images.structure import ACCEPTED, check_exif
from hidream.types import FILE_ACCEPTED, check_file

OPAQUE = 255
TRNS_FACTORS = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies such a PNG's greys by, but not the grey that its tRNS chunk names (Pillow 13.0.0,
PngImagePlugin.py)."""
UNTRUSTED_FORMATS = ("PNG", "JPEG", "WEBP")
"""Pillow's names of the formats that clients may send; it has dozens, and some are hardly maintained."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded file: colours in L, RGB or CMYK; alpha in L, None if all is opaque; an ICC profile, if there is one.

    `warnings` say what was ignored in the file.
    """

    colours: Image.Image
    alpha: Image.Image | None
    profile: bytes | None
    warnings: tuple[str, ...] = ()


def open_image(field: str, data: bytes, formats: tuple[str, ...] | None = None) -> Decoded:
    """Decode a file in one of Pillow's `formats`; None allows all of them.

    Raises InvalidInput, which names the field, if it is not an image or has too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        check_file(field, image.width, image.height)
        check_exif(field, exif_of(image))
        _scale_trns(image)
        upright = _turn_upright(image)
        profile = None if image.mode == "LAB" else image.info.get("icc_profile")  # these colours need none
        warnings = () if upright else (f"{field} has EXIF data that cannot be read: its orientation was ignored",)
        return Decoded(*_on_white(field, image), profile, warnings)
    except InvalidInput:
        raise
    except UnidentifiedImageError as error:
        raise InvalidInput(f"{field} is not an image that can be read ({len(data):,} bytes); {ACCEPTED}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidInput(f"{field} has too many pixels; {FILE_ACCEPTED}") from error
    except MemoryError as error:
        raise InvalidInput(
            f"{field} is too large for the available memory; accepted: an image of fewer pixels"
        ) from error
    except Exception as error:  # a stranger's bytes: Pillow raises a dozen kinds on damaged files, in its own words
        raise InvalidInput(
            f"{field} cannot be read: the file of {len(data):,} bytes is damaged or truncated; {ACCEPTED}"
        ) from error


def exif_of(image: Image.Image) -> bytes:
    """Find the EXIF data that Pillow would read: a file's own, or, by ImageMagick, in hexadecimal in a PNG's text."""
    found = image.info.get("exif")
    if isinstance(found, bytes):
        return found
    try:
        return bytes.fromhex("".join(image.info.get("Raw profile type exif", "").split("\n")[3:]))
    except (AttributeError, ValueError):
        return b""


def srgb(field: str, file: Decoded) -> tuple[Image.Image, tuple[str, ...]]:
    """Convert a file's colours to RGB in sRGB; a profile that cannot be used is ignored with a warning."""
    if file.profile is None:
        return _in("RGB", file.colours), ()
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(file.profile))
        mode = _mode_of(profile, file.colours.mode)
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
        colours = _in(mode, file.colours)
        return transform.apply(colours, colours if mode == "RGB" else None), ()  # in place, where it can be
    except (OSError, ValueError, ImageCms.PyCMSError):
        warning = (
            f"{field} has a colour profile that cannot be used with its {file.colours.mode} colours: it was ignored"
        )
        return _in("RGB", file.colours), (warning,)


def _mode_of(profile: ImageCms.ImageCmsProfile, mode: str) -> str:
    """Return the mode in which the profile accepts colours of `mode`. Raises ValueError if it does not accept them."""
    space = profile.profile.xcolor_space.strip()
    taken = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space, "")
    if taken != mode and (taken, mode) != ("RGB", "L"):  # a grey is three equal channels
        raise ValueError(f"a profile of {space} colours, for {mode}")
    return taken


def _in(mode: str, image: Image.Image) -> Image.Image:
    """Convert an image's mode; unlike Pillow, do not copy it if the mode is the same."""
    return image if image.mode == mode else image.convert(mode)


def _turn_upright(image: Image.Image) -> bool:
    """Rotate an image by its EXIF orientation. Return False if the EXIF data is damaged."""
    image.load()  # errors in the pixels are raised here, and not taken for damaged EXIF data
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # Pillow raises several kinds on damaged EXIF
        return False
    return True


def _scale_trns(image: ImageFile.ImageFile) -> None:
    """Scale a PNG's transparent colour to the 8 bits to which Pillow scales the pixels."""
    transparency, raw = image.info.get("transparency"), image.tile[0].args if image.tile else None
    if isinstance(transparency, int) and raw in TRNS_FACTORS:
        image.info["transparency"] = transparency * TRNS_FACTORS[raw]
    elif isinstance(transparency, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in transparency)


def _on_white(field: str, image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Convert any mode to L, RGB or CMYK, composited on white. Return it and its alpha, None if all is opaque."""
    colours, alpha = _deep(field, image) if image.mode[0] in "IF" else _shallow(image)
    if alpha is None or not any(alpha.histogram()[:OPAQUE]):
        return colours, None
    white = Image.new(colours.mode, colours.size, "white")
    white.paste(colours, mask=alpha)
    return white, alpha


def _shallow(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split colours and alpha of an image of at most 8 bits a channel."""
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        return image.convert(image.mode[:-1]), image.getchannel("A")
    kept = {"1": "L", "L": "L", "CMYK": "CMYK"}
    return _in(kept.get(image.mode, "RGB"), image), None


def _deep(field: str, image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Convert 16-bit or floating point greys to 8 bits; Pillow's own conversion would clip them.

    Floats range from 0 to 1, or from 0 to 255 if any is above 1.
    """
    values = np.asarray(image)
    smallest, largest = values.min(), values.max()
    float_ = image.mode == "F"
    if not 0 <= smallest <= largest <= (255 if float_ else 65535):  # nor NaN
        accepted = "0 to 1, or to 255" if float_ else "0 to 65535"
        raise InvalidInput(f"{field} has values from {smallest:g} to {largest:g}; accepted: {accepted}, or 8 bits")
    if float_:
        return Image.fromarray(np.rint(values * (255 if largest <= 1 else 1)).astype(np.uint8)), None
    values = values.astype(np.uint16, copy=False)
    transparency = image.info.get("transparency")
    alpha = (
        None
        if transparency is None
        else Image.fromarray(np.where(values == transparency, np.uint8(0), np.uint8(OPAQUE)))
    )
    return Image.fromarray((values // 257 + (values % 257 > 128)).astype(np.uint8)), alpha  # 257 = 65535 / 255, rounded
