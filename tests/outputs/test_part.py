"""Files that are written piece by piece and then stored, in a folder and in a bucket."""

import contextlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hidream.errors import NotFound, ObjectStoreUnavailable
from hidream.file_names import random_name
from hidream.outputs.folder import Folder
from hidream.outputs.object_store import Namespace
from hidream.types import ImageFormat

NAME = random_name(ImageFormat.PNG)


async def test_what_was_written_in_pieces_is_there_whole(place):
    for pieces in ([b"first ", b"and longer"], [b"second"], []):
        async with place.part() as part:
            for piece in pieces:
                await part.write(piece)
            assert part.size_bytes == sum(map(len, pieces))
            await place.adopt(NAME, part)
        assert await place.read(NAME) == b"".join(pieces)
        assert not part.path.exists()


async def test_what_nobody_takes_is_gone(place):
    paths = []
    with pytest.raises(RuntimeError):
        async with place.part() as part:
            paths.append(part.path)
            await part.write(b"x" * 1_000_000)
            raise RuntimeError
    async with place.part() as part:
        paths.append(part.path)
        await part.write(b"x")
        with pytest.raises(NotFound):
            await place.adopt("../x", part)
    assert not any(path.exists() for path in paths)
    with pytest.raises(NotFound):
        await place.read(NAME)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path, Namespace.UPLOADS)


async def brought(folder, data, act):
    """Write a part, flush it and do something with it; what that gives, once the part is gone."""
    async with folder.part() as part:
        await part.write(data)
        await part.flush()
        return await act(part)


async def test_the_file_itself_is_moved(folder):
    async def move(part):
        inode = part.path.stat().st_ino
        await folder.adopt(NAME, part)
        return inode

    inode = await brought(folder, b"an image", move)
    assert (folder.path / NAME).stat().st_ino == inode
    assert list((folder.path / ".parts").iterdir()) == []


async def test_what_a_process_left_is_found_by_a_sweep(folder):
    async def leave(part):
        left = part.path.with_name(f"{part.path.name}x")  # as if there were no end to the block
        os.link(part.path, left)
        return left

    left = await brought(folder, b"half", leave)
    names = [name async for name in folder.names(datetime.now(UTC) + timedelta(days=1))]
    assert len(names) == 1
    await folder.delete(names)
    assert not left.exists()


async def test_a_disk_that_is_full_is_said(tmp_path):
    folder = Folder(tmp_path, Namespace.UPLOADS)

    with contextlib.suppress(OSError), Path("/dev/full").open("wb") as full:  # noqa: ASYNC230
        async with folder.part() as part:
            part._file.close()
            part._file = full
            with pytest.raises(ObjectStoreUnavailable, match="cannot be written now: No space left") as raised:
                await part.write(b"x" * 1_000_000)
            assert str(tmp_path) not in raised.value.message
