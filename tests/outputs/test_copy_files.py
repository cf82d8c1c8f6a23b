"""A copy of files continues where it was killed, and ends only when every file is the same in both places."""

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hidream.errors import ConfigurationError, InvalidInput, NotFound
from hidream.file_names import random_name
from hidream.outputs.copy import EVER, copy_files
from hidream.outputs.folder import Folder
from hidream.outputs.location import open_object_store
from hidream.outputs.object_store import Namespace
from hidream.types import ImageFormat

HERE = Path(__file__)
WAYS = [
    "folder to folder",
    *(pytest.param(way, marks=pytest.mark.integration) for way in ("folder to bucket", "bucket to folder")),
]
FILES = 5


def ignore(*_):
    pass


@pytest.fixture(params=WAYS)
def stores(request, tmp_path):
    """The source, with files in both namespaces, and the target, which has none."""

    def opened(kind, name):
        if kind == "folder":
            return {each: open_object_store(str(tmp_path / name), each) for each in Namespace}
        s3 = request.getfixturevalue("s3")
        return {each: open_object_store(s3.url(f"{tmp_path.name}/{name}"), each, s3.access()) for each in Namespace}

    source, _, target = request.param.partition(" to ")
    return opened(source, "source"), opened(target, "target")


async def fill(source):
    """Write FILES files, one of them empty and one of several chunks; their contents by namespace and name."""
    contents = {}
    for number in range(FILES):
        namespace = list(Namespace)[number % 2]
        name, data = random_name(list(ImageFormat)[number % 3]), os.urandom(100_000) * number
        await source[namespace].write(name, data)
        contents[namespace, name] = data
    return contents


async def contents(store):
    """All complete files, by namespace and name."""
    found = {}
    for namespace, place in store.items():
        async for name in place.names(EVER):
            with contextlib.suppress(NotFound):  # an interrupted write has left it
                found[namespace, name] = await place.read(name)
    return found


async def test_every_file_is_copied_and_a_second_copy_finds_them(stores):
    source, target = stores
    wanted = await fill(source)
    size = sum(map(len, wanted.values()))
    assert await copied(source, target, dry_run=True) == (FILES, 0, 0)
    assert await contents(target) == {}
    assert await copied(source, target) == (FILES, 0, size)
    assert await contents(target) == await contents(source) == wanted
    assert await copied(source, target) == (FILES, FILES, 0)
    assert await copied(source, target, dry_run=True) == (FILES, FILES, 0)


async def copied(source, target, **how):
    done = await copy_files(source, target, ignore, **how)
    return done.files, done.present, done.copied_bytes


@pytest.mark.integration
@pytest.mark.parametrize("last", range(1, 2 * FILES, 3))
async def test_a_copy_that_is_killed_continues(tmp_path, last):
    stores = [{each: Folder(tmp_path / name, each) for each in Namespace} for name in ("source", "target")]
    wanted = await fill(stores[0])
    assert killed(tmp_path / "source", tmp_path / "target", last)
    there = await contents(stores[1])
    assert there.items() <= wanted.items()  # whole files only
    files, present, _ = await copied(*stores)
    assert (files, present) == (FILES, len(there))
    assert await contents(stores[1]) == wanted


def killed(source, target, calls):
    """Copy in a process that kills itself at a call of `on_files`; whether it did."""
    command = [sys.executable, "-c", KILLED, source, target, str(calls)]
    environ = os.environ | {"PYTHONPATH": str(HERE.parents[2] / "src")}
    return subprocess.run(command, env=environ, timeout=60).returncode == -9


KILLED = """
import asyncio, os, signal, sys
from hidream.outputs.copy import EVER, copy_files
from hidream.outputs.location import open_object_store
from hidream.outputs.object_store import Namespace
left = int(sys.argv[3])
def on_files(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
stores = [{each: open_object_store(path, each) for each in Namespace} for path in sys.argv[1:3]]
asyncio.run(copy_files(*stores, on_files))
"""


async def test_a_file_of_the_same_size_with_other_bytes_is_found(stores):
    source, target = stores
    wanted = await fill(source)
    (namespace, name), data = next(item for item in wanted.items() if item[1])
    await target[namespace].write(name, bytes(len(data)))
    with pytest.raises(ConfigurationError, match=f"1 files in {namespace} of TO differ from FROM: {name}"):
        await copy_files(source, target, ignore)


async def test_a_file_of_another_size_is_replaced(stores):
    source, target = stores
    wanted = await fill(source)
    (namespace, name), _ = next(item for item in wanted.items() if item[1])
    await target[namespace].write(name, b"half")
    await copy_files(source, target, ignore)
    assert await contents(target) == wanted


@pytest.mark.parametrize("change", ["write", "delete"])
async def test_files_that_a_server_writes_or_deletes_meanwhile_are_noticed(stores, change):
    source, target = stores
    wanted = await fill(source)
    namespace, name = next(iter(wanted))
    new = random_name(ImageFormat.PNG)
    changing = []

    def on_files(doing, done, total):
        if not changing:
            call = source[namespace].write(new, b"new") if change == "write" else source[namespace].delete([name])
            changing.append(asyncio.ensure_future(call))

    with pytest.raises(InvalidInput, match=r"1 files in \w+ of FROM were added or deleted during the copy"):
        await copy_files(source, target, on_files)
    await changing[0]


async def test_what_an_interrupted_write_has_left_is_no_file(tmp_path):
    source, target = ({each: Folder(tmp_path / name, each) for each in Namespace} for name in ("source", "target"))
    wanted = await fill(source)
    (tmp_path / "source/outputs/.parts").mkdir(exist_ok=True)
    (tmp_path / f"source/outputs/.parts/{random_name(ImageFormat.PNG)}.abc").write_bytes(b"half")
    await copy_files(source, target, ignore)
    assert await contents(target) == wanted


async def test_a_place_without_files_is_refused(stores):
    source, target = stores
    with pytest.raises(InvalidInput, match="FROM has no files"):
        await copy_files(source, target, ignore)
