"""What a folder and a bucket both do; each test runs on both."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from hidream.errors import NotFound
from hidream.file_names import random_name
from hidream.outputs.object_store import CHUNK_BYTES, Namespace
from hidream.types import ImageFormat

LATER = datetime.now(UTC) + timedelta(days=1)
NAMES = [random_name(image_format) for image_format in ImageFormat]
NAME = NAMES[0]
LARGE = bytes(range(251)) * (2 * CHUNK_BYTES // 251 + 100)


async def listed(place, older_than=LATER):
    return sorted([name async for name in place.names(older_than)])


async def part(place, name, start, stop):
    _, chunks = await place.open(name)
    return [chunk async for chunk in chunks(start, stop)]


async def test_a_file_is_read_back_and_replaced_whole(place):
    for data in (b"first, and longer", b"second"):
        await place.write(NAME, data)
        assert await place.read(NAME) == data
    assert await listed(place) == [NAME]


async def test_of_many_writers_of_one_name_one_wins_whole(place):
    rivals = [bytes([letter]) * 50_000 for letter in b"abcdefgh"]
    await asyncio.gather(*(place.write(NAME, data) for data in rivals))
    assert await place.read(NAME) in rivals
    assert set(await listed(place)) == {NAME}  # rclone may list what was replaced meanwhile twice


async def test_what_is_known_of_a_file(place):
    before = datetime.now(UTC) - timedelta(seconds=2)  # HTTP's dates have whole seconds
    await place.write(NAME, b"an image")
    metadata = await place.metadata(NAME)
    assert metadata.size_bytes == 9
    assert before < metadata.modified < datetime.now(UTC) + timedelta(seconds=2)
    assert metadata == (await place.open(NAME))[0]
    await place.write(NAME, b"another")
    assert (await place.metadata(NAME)).etag != metadata.etag
    assert metadata.etag[0] == metadata.etag[-1] == '"'
    assert metadata.etag.strip('"').isascii()


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 10), (5, 7), (0, len(LARGE)), (CHUNK_BYTES, CHUNK_BYTES + 1), (CHUNK_BYTES - 1, len(LARGE) - 3), (4, 4)],
)
async def test_a_stretch_of_a_file(place, start, stop):
    await place.write(NAME, LARGE)
    chunks = await part(place, NAME, start, stop)
    assert b"".join(chunks) == LARGE[start:stop]
    assert all(0 < len(chunk) < 2 * CHUNK_BYTES for chunk in chunks)


async def test_what_is_not_there(place):
    for ask in (place.read, place.metadata, place.open):
        with pytest.raises(NotFound):
            await ask(NAME)
    await place.delete(NAMES)
    await place.delete([])
    assert await listed(place) == []


async def test_deleted_files_are_gone_and_the_others_stay(place):
    for name in NAMES:
        await place.write(name, b"data")
    await place.delete([NAMES[0], random_name(ImageFormat.PNG), NAMES[1]])
    assert await listed(place) == sorted(NAMES[2:])
    with pytest.raises(NotFound):
        await place.read(NAMES[0])


async def test_a_sweep_sees_what_is_old_enough(place):
    await place.write(NAMES[0], b"data")
    modified = (await place.metadata(NAMES[0])).modified
    assert await listed(place, modified - timedelta(seconds=1)) == []
    assert await listed(place, modified + timedelta(seconds=2)) == [NAMES[0]]


async def test_a_sweep_sees_more_than_one_page(place):
    names = [random_name(ImageFormat.PNG) for _ in range(1100)]

    for start in range(0, len(names), 50):
        await asyncio.gather(*(place.write(name, b"data") for name in names[start : start + 50]))
    assert await listed(place) == sorted(names)
    await place.delete(names)
    assert await listed(place) == []


async def test_namespaces_do_not_see_each_other(opened):
    outputs, uploads = opened(Namespace.OUTPUTS), opened(Namespace.UPLOADS)
    await outputs.write(NAMES[0], b"drawn")
    await uploads.write(NAMES[0], b"sent")
    await uploads.write(NAMES[1], b"sent")
    assert await listed(outputs) == NAMES[:1]
    assert await outputs.read(NAMES[0]) == b"drawn"
    await outputs.delete(NAMES)
    assert await uploads.read(NAMES[0]) == b"sent"


async def test_the_url_of_this_server(opened):
    for namespace in Namespace:
        url = await opened(namespace).url(NAME, "https://us.example/sub", 60)
        assert url == f"https://us.example/sub/{namespace}/{NAME}"


async def test_a_check_leaves_nothing(place):
    await place.check()
    await place.write(NAME, b"data")
    await place.check()
    assert await listed(place) == [NAME]


async def test_no_name_leads_out_of_the_place(place):
    for name in ("", "..", f"../uploads/{NAME}", f"{NAME}/", f"{NAME}.part", ".probe", ".parts", f"x/{NAME}"):
        for ask in (place.read, place.metadata, place.open, lambda name: place.write(name, b"data")):
            with pytest.raises(NotFound):
                await ask(name)
        with pytest.raises(NotFound):
            await place.delete([NAME, name])
