"""Names that cannot be guessed, and cannot be mistaken for anything else."""

import base64

import pytest

from hidream.errors import NotFound
from hidream.file_names import MEDIA_TYPES, all_names, first_of, format_of, is_name, media_type_of, random_name
from hidream.types import IMAGES_MAX, ImageFormat

TOKEN = "A-_" + "x" * 40


@pytest.mark.parametrize("image_format", ImageFormat)
def test_a_name_has_256_random_bits_and_its_format(image_format):
    names = {random_name(image_format) for _ in range(100)}
    assert len(names) == 100
    for name in names:
        token, _, suffix = name.partition(".")
        assert len(base64.urlsafe_b64decode(token + "=")) * 8 == 256
        assert format_of(name) == suffix == image_format
        assert media_type_of(name) == MEDIA_TYPES[image_format]
        assert is_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../hidream.db",
        f"../{TOKEN}.png",
        f"{TOKEN}/../{TOKEN}.png",
        f"{TOKEN}.gif",
        f"{TOKEN}.PNG",
        f"{TOKEN}.png\n",
        f"{TOKEN}.png.part",
        f"{TOKEN[:-1]}.png",
        f"{TOKEN}x.png",
        f"{TOKEN[:-1]}\0.png",
        f"{TOKEN[:-1]}é.png",
        f"{TOKEN[:-1]}/.png",
    ],
)
def test_what_is_no_name(name):
    assert not is_name(name)
    for ask in (format_of, media_type_of):
        with pytest.raises(NotFound):
            ask(name)


@pytest.mark.parametrize("image_format", ImageFormat)
def test_the_names_of_a_task_lead_back_to_its_first(image_format):
    first = random_name(image_format)
    names = all_names(first, IMAGES_MAX)
    assert names[0] == first
    assert len(set(names)) == IMAGES_MAX
    assert all(is_name(name) and first_of(name) == first for name in names)
