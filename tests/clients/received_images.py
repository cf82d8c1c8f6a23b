"""Checks an image that a client received: its size and format."""

import base64
import io
from pathlib import Path

import httpx
from PIL import Image


def look(source):
    """Decode an image from its URL, the path of its file, or base64."""
    image = Image.open(io.BytesIO(content(source)))
    image.load()
    return image


def content(source):
    if isinstance(source, Path):
        return source.read_bytes()
    if source.startswith("http"):
        return httpx.get(source, timeout=60).raise_for_status().content  # without a key, as clients do
    return base64.b64decode(source, validate=True)


def is_image(source, size=(256, 256), kind="JPEG"):
    """Whether it is one of this size and format, and not all of one colour."""
    image = look(source)
    assert (image.size, image.format) == (size, kind)
    return any(low != high for low, high in image.convert("RGB").getextrema())
