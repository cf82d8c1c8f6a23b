"""A folder: what a crash or a power cut leaves behind, and a full disk."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hidream.errors import ConfigurationError, NotFound, ObjectStoreUnavailable
from hidream.file_names import random_name
from hidream.outputs.folder import Folder
from hidream.outputs.object_store import CHUNK_BYTES, Namespace
from hidream.types import ImageFormat

NAME, OTHER = random_name(ImageFormat.PNG), random_name(ImageFormat.JPEG)


def folder_at(path):
    return Folder(path, Namespace.OUTPUTS)


def files_of(folder):
    return sorted(path.name for path in folder.path.rglob("*") if path.is_file())


async def listed(folder, older_than):
    return [name async for name in folder.names(older_than)]


def open_files(folder):
    """What this process has open there: connections of other tests come and go."""
    return [path for fd in Path("/proc/self/fd").iterdir() if (path := fd.resolve()).is_relative_to(folder)]


@contextmanager
def full_disk(after_bytes):
    """No file of this process grows beyond: the kernel refuses the write, as on a full disk (EFBIG for ENOSPC)."""
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


async def test_a_full_disk_is_said_and_leaves_what_was(tmp_path):
    folder = folder_at(tmp_path)
    await folder.write(NAME, b"first")
    with (
        full_disk(1000),
        pytest.raises(ObjectStoreUnavailable, match="cannot be written now: File too large; try again"),
    ):
        await folder.write(NAME, b"x" * 5000)
    assert files_of(folder) == [NAME]
    assert await folder.read(NAME) == b"first"


async def test_an_error_does_not_say_the_name_or_the_path(tmp_path):
    folder = folder_at(tmp_path)
    (folder.path / NAME).mkdir(parents=True)
    for ask in (folder.read(NAME), folder.write(NAME, b"data"), folder.delete([NAME])):
        with pytest.raises(ObjectStoreUnavailable) as caught:
            await ask
        assert NAME not in caught.value.message
        assert str(tmp_path) not in caught.value.message
    assert files_of(folder) == []


@pytest.mark.integration
async def test_what_a_killed_process_left_is_found_and_removed(tmp_path):
    script = f"""
import asyncio, os
from pathlib import Path
from hidream.outputs.folder import Folder
from hidream.outputs.object_store import Namespace
os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
asyncio.run(Folder(Path({str(tmp_path)!r}), Namespace.OUTPUTS).write({NAME!r}, b"half"))
"""
    folder = folder_at(tmp_path)
    (folder.path / ".parts").mkdir(parents=True)  # making it would be synced, too
    killed = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script])
    assert killed.returncode == -signal.SIGKILL
    assert len(files_of(folder)) == 1

    await folder.write(OTHER, b"whole")
    with pytest.raises(NotFound):
        await folder.read(NAME)
    assert await listed(folder, datetime.now(UTC) - timedelta(minutes=1)) == []
    assert sorted(await listed(folder, datetime.now(UTC) + timedelta(minutes=1))) == sorted([NAME, OTHER])
    await folder.delete([NAME])
    assert files_of(folder) == [OTHER]


async def test_each_new_folder_and_file_is_synced_before_it_is_there(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = folder_at(tmp_path / "made" / "on demand")
    await folder.write(NAME, b"data")
    outputs = folder.path
    folders = [tmp_path, tmp_path / "made", tmp_path / "made" / "on demand", outputs]
    assert synced[:4] == [str(path) for path in folders]  # of each, that it holds the next
    assert synced[4].startswith(str(outputs / ".parts" / NAME))
    assert synced[5:] == [str(outputs)]


async def test_what_is_no_file_of_ours_is_left_alone(tmp_path):
    folder = folder_at(tmp_path)
    folder.path.mkdir()
    (folder.path / "README").write_text("mine")
    (folder.path / ".parts").mkdir()
    (folder.path / ".parts" / "note").write_text("mine")
    assert await listed(folder, datetime.now(UTC) + timedelta(days=1)) == []
    await folder.delete([NAME])
    assert files_of(folder) == ["README", "note"]


async def test_a_file_that_becomes_shorter_is_an_error(tmp_path):
    folder = folder_at(tmp_path)

    await folder.write(NAME, b"x" * (CHUNK_BYTES + 5))
    metadata, chunks = await folder.open(NAME)
    stretch = chunks(0, metadata.size_bytes)
    assert await anext(stretch) == b"x" * CHUNK_BYTES
    await folder.write(NAME, b"less")
    with pytest.raises(ObjectStoreUnavailable, match="truncated"):
        await anext(stretch)


async def test_a_download_that_is_given_up_keeps_nothing_open(tmp_path):
    folder = folder_at(tmp_path)

    await folder.write(NAME, b"x" * 2 * CHUNK_BYTES)
    stretches = [(await folder.open(NAME))[1](0, 2 * CHUNK_BYTES) for _ in range(5)]
    for stretch in stretches:
        await anext(stretch)
    assert open_files(tmp_path) == []


async def test_a_check_names_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"taken/outputs cannot be written to: .*; accepted"):
        await folder_at(tmp_path / "taken").check()


async def test_deleting_a_file_leaves_anothers_half_written_part(tmp_path):
    folder = folder_at(tmp_path)

    await folder.write(NAME, b"whole")
    part = folder.path / ".parts" / f"{OTHER}.half"
    part.write_bytes(b"ha")
    await folder.delete([NAME])
    assert files_of(folder) == [part.name]
    await folder.delete([OTHER])
    assert files_of(folder) == []


async def test_a_check_writes_where_files_are_begun(tmp_path, monkeypatch):
    """Another folder, of another disk or owner, may well be writable."""
    written = []
    real = tempfile.TemporaryFile

    def temporary(*args, **kwargs):
        file = real(*args, **kwargs)
        written.append(Path(f"/proc/self/fd/{file.fileno()}").readlink().parent)
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    folder = folder_at(tmp_path)
    await folder.check()
    assert written == [folder.path / ".parts"]
    assert files_of(folder) == []
