"""Init images over HTTP: the result is the library's, and so are the warnings."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hidream.model.pipeline import generate
from hidream.request import ImageRequest
from hidream.types import Size

PROMPT = "flat style a red apple on a blue background"
BODY = {"prompt": PROMPT, "seed": 7, "output_format": "png", "num_inference_steps": 2, "strength": 0.5}


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def holed():
    image = Image.new("RGBA", (256, 256), (200, 60, 40, 255))
    image.paste((0, 0, 0, 0), (0, 0, 128, 256))
    return png(image)


def broken_profile():
    """A PNG whose iCCP chunk can be read, and the profile in it cannot."""
    plain, body = png(Image.new("RGB", (256, 256), (200, 60, 40))), b"p\0\0" + zlib.compress(b"garbage" * 50)
    chunk = struct.pack(">I", len(body)) + b"iCCP" + body + struct.pack(">I", zlib.crc32(b"iCCP" + body))
    return plain[:33] + chunk + plain[33:]


@pytest.mark.parametrize(
    ("image", "size", "said"),
    [
        (png(Image.new("RGB", (2000, 1), (200, 60, 40))), "1024*1024", []),
        (png(Image.fromarray(np.full((256, 256), 8000, np.uint16))), "256*256", []),
        (holed(), "256*256", ["image has transparent parts"]),
        (broken_profile(), "256*256", ["image has a colour profile"]),
    ],
)
def test_it_is_drawn_as_the_library_draws_it_and_its_warnings_are_told(service, library, image, size, said):
    data, file = service.draw(**BODY, size=size, image=base64.b64encode(image).decode())
    side = int(size.split("*")[0])
    expected = generate(library, ImageRequest(PROMPT, Size(side, side), seed=7, steps=2, image=image, strength=0.5))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), expected.pixels)
    assert data.get("warnings", []) == list(expected.warnings)
    assert [each[: len(start)] for each, start in zip(expected.warnings, said, strict=True)] == said


def test_the_images_of_a_task_say_it_once(service):
    task = service.submit(**BODY, size="256*256", image=base64.b64encode(holed()).decode(), num_images=3)
    data = service.result(task)
    assert (data["status"], len(data["outputs"]), len(data["warnings"])) == ("completed", 3, 1)


def test_a_mask_of_another_size_is_told_by_its_field(service):
    image, mask = (base64.b64encode(png(Image.new("L", size))).decode() for size in ((64, 64), (64, 65)))
    data = service.result(service.submit(**BODY, size="256*256", image=image, mask=mask))
    assert (data["status"], data["code"]) == ("failed", 1401)
    assert data["error"] == "mask is 64*65 pixels and image 64*64; accepted: equal sizes"
