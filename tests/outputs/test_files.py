"""Files are written whole, read back, and found nowhere but in their folder."""

import asyncio

import pytest

from hidream.errors import NotFound
from hidream.outputs import files
from hidream.types import ImageFormat

TOKEN = "A-_" + "x" * 40


def test_a_file_is_read_back_and_replaced_whole(tmp_path):
    folder = tmp_path / "made" / "on" / "demand"
    for data in (b"first", b"second"):
        asyncio.run(files.write(folder, f"{TOKEN}.png", data))
        assert asyncio.run(files.read(folder, f"{TOKEN}.png")) == data
    assert [path.name for path in folder.iterdir()] == [f"{TOKEN}.png"]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / f"{TOKEN}.png").mkdir()
    with pytest.raises(OSError, match=TOKEN):
        asyncio.run(files.write(tmp_path, f"{TOKEN}.png", b"data"))
    assert [path.name for path in tmp_path.iterdir()] == [f"{TOKEN}.png"]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(NotFound):
        asyncio.run(files.read(tmp_path, f"{TOKEN}.png"))


def test_the_format_is_in_the_name():
    assert files.format_of(f"{TOKEN}.webp") is ImageFormat.WEBP


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../hidream.db",
        f"../{TOKEN}.png",
        f"{TOKEN}/../{TOKEN}.png",
        f"{TOKEN}.gif",
        f"{TOKEN}.png\n",
        f"{TOKEN}.png.part",
        f"{TOKEN[:-1]}.png",
        f"{TOKEN[:-1]}\0.png",
        f"{TOKEN[:-1]}é.png",
    ],
)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    with pytest.raises(NotFound):
        files.path_of(tmp_path, name)
