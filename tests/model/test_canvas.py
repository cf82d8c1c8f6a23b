"""A picture to start from: what is said of a file that is none."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from hidream.errors import InvalidInput
from hidream.model.canvas import open_canvas
from hidream.types import ImageRequest, Size


def png() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((64, 64), 64).save(out, "PNG")
    return out.getvalue()


def opened(**files: bytes) -> None:
    open_canvas(ImageRequest("x", Size(512, 512), seed=1, **files))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG"])
def test_a_file_of_no_known_format_is_told_by_its_field_and_length(data):
    said = rf"image is no picture that can be read \({len(data)} bytes\); accepted: a PNG, JPEG or WebP file"
    with pytest.raises(InvalidInput, match=f"^{said}$"):
        opened(image=data)


def test_a_picture_that_ends_too_early_is_told_with_the_reason():
    with pytest.raises(InvalidInput, match=r"^mask cannot be read: .*truncated.*; accepted: a PNG, JPEG or WebP file$"):
        opened(image=png(), mask=png()[:2000])
