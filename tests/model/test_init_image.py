"""The init image and its mask: what may change, at which sizes, in how much memory, and the warnings."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from hidream.errors import InvalidInput
from hidream.model.latents.init_image import FEATHER_PX, InitImage, Layer, cells, open_init_image
from hidream.model.latents.shape import to_pixels
from hidream.request import ImageRequest
from hidream.types import Size
from image_files import P3, rgb_profile, saved, srgb_curve

SIZE = Size(256, 256)


def init_image(image: Image.Image, mask: Image.Image | None = None, size: Size = SIZE, **options: object) -> InitImage:
    data = None if mask is None else saved(mask)
    opened = open_init_image(ImageRequest("x", size, seed=1, image=saved(image, **options), mask=data), [Size(64, 96)])
    assert opened is not None
    return opened


def photo(width: int, height: int) -> Image.Image:
    """Smooth noise, as a photo has it, no value so near to black or white that rounding twice would cut it off."""
    values = np.random.default_rng(0).integers(40, 216, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def holed(colour: tuple[int, int, int], there: int = 0) -> Image.Image:
    """Of one colour, and its left half of that alpha, black beneath."""
    image = Image.new("RGBA", (256, 256), (*colour, 255))
    image.paste((0, 0, 0, there), (0, 0, 128, 256))
    return image


def half(left: int, right: int) -> Image.Image:
    image = Image.new("L", (256, 256), right)
    image.paste(left, (0, 0, 128, 256))
    return image


def may_change(layer: Layer) -> tuple[bool, bool]:
    """Whether the left half may, and the right one."""
    assert layer.mask is not None
    middle = layer.mask.shape[-1] // 2
    halves = layer.mask[..., :middle], layer.mask[..., middle:]
    assert all(bool(each.all()) == bool(each.any()) for each in halves)
    return bool(halves[0].all()), bool(halves[1].all())


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [(640, 360), (360, 640), (1000, 667), (256, 256), (37, 100)])
@pytest.mark.parametrize("size", [Size(512, 512), Size(400, 304), Size(360, 640)])
def test_it_is_what_pillow_scales_whole_and_cuts_then(source, size):
    image = photo(*source)
    scale = max(size.width / image.width, size.height / image.height)
    whole = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - size.width) // 2, (whole.height - size.height) // 2
    theirs = np.asarray(whole.crop((left, top, left + size.width, top + size.height))).astype(int)
    assert np.abs(to_pixels(init_image(image, size=size).at(size).image).numpy() - theirs).max() <= 1


def test_of_its_own_size_it_is_itself():
    image = photo(256, 256)
    assert np.array_equal(to_pixels(init_image(image).at(SIZE).image).numpy(), np.asarray(image))


EXTREME = """
import resource, sys, torch
sys.path.insert(0, "tests")
from image_files import saved
from PIL import Image
from hidream.model.latents.init_image import open_init_image
from hidream.model.latents.shape import to_pixels
from hidream.request import ImageRequest
from hidream.types import Size
size = Size(1024, 1024)
def opened(width, height):
    image, mask = saved(Image.new("RGB", (width, height), (200, 3, 4))), saved(Image.new("L", (width, height), 255))
    layer = open_init_image(ImageRequest("x", size, seed=1, image=image, mask=mask)).at(size)
    assert (to_pixels(layer.image) == torch.tensor([200, 3, 4])).all() and layer.mask.all()
opened(1024, 1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for shape in ((1, 1), (2000, 1), (1, 60000), (60000, 200)):
    opened(*shape)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.integration
def test_memory_grows_with_the_output_and_not_with_what_is_cut_off():
    """60000 × 200 pixels take Pillow 46 MiB; one channel of 1024² floats 4 MiB, and up to 8 sizes of it are scaled."""
    grown = subprocess.run([sys.executable, "-c", EXTREME], capture_output=True, text=True, check=True).stdout
    assert int(grown) / 1024 < 250


def test_nothing_is_kept_but_the_sizes_that_are_needed():
    opened = init_image(photo(1000, 1000), half(0, 255).resize((1000, 1000)))
    assert set(opened.layers) == {SIZE, Size(64, 96)}
    layer = opened.at(Size(64, 96))
    assert (layer.image.shape, layer.mask.shape) == ((3, 96, 64), (1, 96, 64))


# --- where it may change ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("left", "right"), [(0, 255), (127, 128), (255, 0)])
def test_a_mask_is_light_where_the_image_may_change(left, right):
    opened = init_image(photo(256, 256), half(left, right))
    assert all(may_change(layer) == (left >= 128, right >= 128) for layer in opened.layers.values())
    assert not opened.warnings


@pytest.mark.parametrize("dark", [8000, 32767])
def test_a_mask_of_16_bits_is_read_as_one_of_8(dark):
    mask = np.full((256, 256), dark, np.uint16)
    mask[:, 128:] = 40000
    assert may_change(init_image(photo(256, 256), Image.fromarray(mask)).at(SIZE)) == (False, True)


def test_a_mask_is_read_by_its_numbers_whatever_its_profile():
    mask, profile = half(100, 150).convert("RGB"), rgb_profile(P3, srgb_curve())
    request = ImageRequest("x", SIZE, seed=1, image=saved(photo(256, 256)), mask=saved(mask, icc_profile=profile))
    assert may_change(open_init_image(request).at(SIZE)) == (False, True)


def test_an_opaque_image_without_a_mask_may_change_everywhere():
    opened = init_image(Image.new("RGBA", (256, 256), (9, 9, 9, 255)))
    assert opened.at(SIZE).mask is None
    assert not opened.warnings


@pytest.mark.parametrize("there", [0, 127])
def test_what_is_transparent_in_an_image_without_a_mask_may_change(there):
    opened = init_image(holed((200, 60, 40), there))
    assert may_change(opened.at(SIZE)) == (True, False)
    (said,) = opened.warnings
    assert said == (
        "image has transparent parts and no mask: only they may change, starting from white; "
        "to let all of it change as it looks on white, send it without transparency"
    )
    value = 255 - there
    assert to_pixels(opened.at(SIZE).image)[0, 0].tolist() == [value] * 3


def test_an_image_that_is_nowhere_transparent_by_half_may_change_everywhere():
    opened = init_image(holed((200, 60, 40), 128))
    assert opened.at(SIZE).mask is None
    assert opened.warnings == (
        "image is translucent, but nowhere by half: it is blended over white, and all of it may change",
    )


def test_a_mask_counts_more_than_the_images_own_transparency():
    opened = init_image(holed((200, 60, 40)), half(0, 255))
    assert may_change(opened.at(SIZE)) == (False, True)
    assert to_pixels(opened.at(SIZE).image)[0, 0].tolist() == [255] * 3
    assert not opened.warnings


def test_a_mask_with_a_hole_may_change_there():
    opened = init_image(photo(256, 256), holed((0, 0, 0)))
    assert may_change(opened.at(SIZE)) == (True, False)
    assert not opened.warnings


def test_a_mask_with_a_hole_and_light_says_which_of_them_was_taken():
    opened = init_image(photo(256, 256), holed((255, 255, 255)))
    assert may_change(opened.at(SIZE)) == (True, False)
    (said,) = opened.warnings
    assert said.startswith("mask has transparent parts and light ones: only the transparent ones may change;")


@pytest.mark.parametrize("alpha", [128, 255])
def test_a_mask_that_is_nowhere_transparent_is_read_by_its_light(alpha):
    mask = half(0, 255).convert("RGB")
    mask.putalpha(alpha)
    assert may_change(init_image(photo(256, 256), mask).at(SIZE)) == (False, True)


@pytest.mark.parametrize(
    "mask",
    [
        half(0, 0),
        half(127, 0),
        holed((0, 0, 0), 255),
        Image.new("1", (256, 256)),
        Image.new("RGBA", (256, 256), "black"),
    ],
)
def test_a_mask_that_leaves_nothing_to_change_says_so(mask):
    opened = init_image(photo(256, 256), mask)
    assert not opened.at(SIZE).mask.any()
    (said,) = opened.warnings
    assert said.startswith("the mask lets no part of the image change;")


def test_so_does_one_that_is_white_only_where_the_image_is_cut_off():
    mask = Image.new("L", (512, 256))
    mask.paste(255, (0, 0, 100, 256))
    assert any("lets no part of the image change" in said for said in init_image(photo(512, 256), mask).warnings)


def test_both_are_turned_upright_before_they_are_compared():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    mask = Image.new("L", (64, 128))
    mask.paste(255, (32, 0, 64, 128))
    lying = saved(mask.transpose(Image.Transpose.ROTATE_90), exif=exif)
    for image in (saved(Image.new("RGB", (128, 64)), "JPEG", exif=exif), saved(Image.new("RGB", (64, 128)))):
        for given in (lying, saved(mask)):
            opened = open_init_image(ImageRequest("x", Size(64, 128), seed=1, image=image, mask=given))
            assert may_change(opened.at(Size(64, 128))) == (False, True)
    with pytest.raises(InvalidInput, match=r"^mask is 128\*64 pixels and image 64\*128; accepted: equal sizes$"):
        init_image(Image.new("RGB", (64, 128)), Image.new("L", (128, 64)))


# --- what comes back -------------------------------------------------------------------------------------------------


def test_what_stays_is_the_image_and_the_seam_lies_within_the_mask():
    image = photo(256, 256)
    drawn = torch.full((3, 256, 256), -1.0)
    kept = to_pixels(init_image(image, half(0, 255)).at(SIZE).blend(drawn)).numpy()
    assert np.array_equal(kept[:, :128], np.asarray(image)[:, :128])
    assert (kept[:, 128 + FEATHER_PX :] == 0).all()
    seam = kept[:, 128 : 128 + FEATHER_PX].astype(float).mean(axis=(0, 2))
    assert (np.diff(seam) < 0).all()
    assert 0 < seam[-1] < seam[0] < np.asarray(image).mean()


def test_the_seam_rises_evenly_from_the_masks_edge_and_not_at_the_images():
    mask = torch.zeros(1, 40, 60)
    mask[..., 30:] = 1
    shares = Layer(torch.zeros(3, 40, 60), mask, None).blend(torch.ones(3, 40, 60))[0]
    assert not shares[:, :30].any()
    rising = (2 * torch.arange(FEATHER_PX) + 1) / (2 * FEATHER_PX + 1)
    torch.testing.assert_close(shares[:, 30 : 30 + FEATHER_PX], rising.expand(40, -1))
    torch.testing.assert_close(shares[:, 30 + FEATHER_PX :], torch.ones(40, 30 - FEATHER_PX))


def test_the_smallest_thing_that_a_mask_protects_stays():
    mask = torch.ones(1, 40, 40)
    mask[0, 20, 20] = 0
    shares = Layer(torch.zeros(3, 40, 40), mask, None).blend(torch.ones(3, 40, 40))[0]
    assert shares[20, 20] == 0
    assert shares[20, 21] > 0.9


def test_a_cell_of_the_latent_may_change_if_the_mask_touches_it():
    mask = torch.zeros(1, 64, 64)
    mask[0, 8, 40] = 1
    assert cells(mask, 8, 8).nonzero().tolist() == [[0, 0, 1, 5]]
    assert cells(mask, 8, 8).max() == 1


def test_no_white_is_left_around_what_stays_of_an_image_with_a_hole():
    """A soft edge lies on what is drawn as it would lie on white, and what is opaque comes back to the last pixel."""
    red, black = (255, 0, 0), torch.full((3, 256, 256), -1.0)
    image = Image.new("RGBA", (256, 256), (*red, 0))
    image.paste((*red, 100), (100, 0, 120, 256))
    image.paste((*red, 200), (120, 0, 140, 256))
    image.paste((*red, 255), (140, 0, 256, 256))
    kept = to_pixels(init_image(image).at(SIZE).blend(black)).numpy()
    assert (kept[..., 1:] <= 1).all()
    assert np.abs(kept[0, [10, 99, 139, 140, 255], 0].astype(int) - [0, 0, 200, 255, 255]).max() <= 1
    assert (kept[:, 140:] == red).all()


def test_what_a_mask_protects_is_white_where_it_is_transparent():
    kept = to_pixels(init_image(holed((200, 60, 40)), half(0, 255)).at(SIZE).blend(torch.full((3, 256, 256), -1.0)))
    assert (kept[:, :128] == 255).all()


def test_a_warning_about_colours_is_among_the_others():
    opened = init_image(holed((200, 60, 40)), icc_profile=b"garbage" * 50)
    assert [said.split()[:4] for said in opened.warnings] == [
        ["image", "has", "a", "colour"],
        ["image", "has", "transparent", "parts"],
    ]
