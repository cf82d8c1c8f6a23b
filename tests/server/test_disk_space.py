"""The low-water mark: below it nothing new is accepted, and existing tasks continue."""

import os
import shutil
import subprocess
import threading
from dataclasses import replace

import pytest

from hidream.file_names import random_name
from hidream.outputs.folder import Folder
from hidream.outputs.location import open_object_store
from hidream.outputs.object_store import Namespace
from hidream.server.limits.disk_space import DiskSpace, folders_of
from hidream.types import ImageFormat


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 60 MB; nobody but root can have one, and others see it by the mark alone."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    yield folder, mounted
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.integration
async def test_a_look_is_good_for_a_second(small_disk):
    folder, mounted = small_disk
    now = [0.0]
    free_mb = 30 if mounted else 10**9
    disk = DiskSpace([folder / "not" / "there", folder], free_mb, lambda: now[0])

    assert (await disk.shortage() is None) is mounted
    (folder / "large").write_bytes(b"x" * 40_000_000)
    assert (await disk.shortage() is None) is mounted, "as a moment ago"
    now[0] += 1
    assert "MB free" in await disk.shortage()
    assert str(folder) not in await disk.shortage()


async def test_a_disk_that_hangs_holds_nobody_up(tmp_path, monkeypatch):
    asked, goes_on, usage = [], threading.Event(), shutil.disk_usage

    def hangs(folder):
        asked.append(folder)
        goes_on.wait()
        return usage(folder)

    now = [0.0]
    disk = DiskSpace([tmp_path], 10**9, lambda: now[0], timeout_s=60)
    first = await disk.shortage()
    monkeypatch.setattr(shutil, "disk_usage", hangs)
    disk._timeout_s = 0.01
    try:
        for now[0] in range(1, 50):
            assert await disk.shortage() == first, "what was found before counts"
        looking = disk._measuring
    finally:
        goes_on.set()
    await looking
    assert len(asked) == 1
    disk._shortage = None
    assert await disk.shortage() is None, "as a moment ago"
    now[0] += 1
    disk._timeout_s = 60
    assert "MB free" in await disk.shortage()


async def test_a_disk_that_does_not_answer_takes_nothing_in(tmp_path, monkeypatch):
    def fails(folder):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(shutil, "disk_usage", fails)
    told = await DiskSpace([tmp_path], 1).shortage()
    assert told == "the server's free disk space cannot be read (Stale file handle)"


async def test_zero_does_not_look(tmp_path):
    assert await DiskSpace([tmp_path], 0).shortage() is None


def test_only_this_machines_disks_are_looked_at(tmp_path):
    bucket = open_object_store("s3://bucket", Namespace.UPLOADS)
    assert folders_of("postgresql+asyncpg://a:b@c/d", bucket) == []
    assert folders_of(f"sqlite+aiosqlite:///{tmp_path}/a/hidream.db", bucket) == [tmp_path / "a"]
    files = Folder(tmp_path / "files", Namespace.UPLOADS)
    assert folders_of("postgresql+asyncpg://a:b@c/d", files) == [tmp_path / "files"]


async def test_below_the_mark_nothing_is_taken_in_and_the_rest_goes_on(make_image, small_disk, api):
    folder, mounted = small_disk

    done = (await api.submit(prompt="a house")).json()["data"]
    task = await api.draw()
    ticket = (await api.post("/api/v3/media/uploads", filename="a", size=9)).json()["data"]
    disk = api.service.disk_space
    disk._folders, disk._free_min_mb = (folder,), 50 if mounted else 10**9
    if mounted:
        api.service.disk_space._measured_at = -100
        assert await disk.shortage() is None
        (folder / "large").write_bytes(b"x" * 30_000_000)
    disk._measured_at = -100
    refused = [
        await api.submit(prompt="another"),
        await api.post("/v1/images/generations", prompt="another"),
        await api.post("/api/v3/media/uploads", filename="a", size=9),
        await api.client.post("/api/v3/media/upload/binary", files={"file": ("a", make_image())}, headers=api.bearer),
        await api.client.put(ticket["upload"]["url"], content=b"x" * 9),
        await api.client.put(f"/uploads/{random_name(ImageFormat.PNG)}", content=b"x" * 9),
    ]
    assert [answer.status_code for answer in refused] == [507] * len(refused)
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    ready = await api.client.get("/readyz")
    assert (ready.status_code, "MB free" in ready.json()["message"]) == (503, True)
    path = f"/api/v3/predictions/{done['id']}"
    assert (await api.get(path)).json()["data"]["status"] == "completed"
    assert (await api.client.get(f"/outputs/{task.output_name}")).status_code == 200
    assert (await api.delete(path)).status_code == 200


async def test_a_full_disk_below_the_mark_leaves_nothing_behind(api, small_disk):
    """The mark is no promise: what no longer fits is a 503, and of what was written nothing stays."""
    folder, mounted = small_disk
    if not mounted:
        return  # as root alone it can be small
    place = Folder(folder, Namespace.UPLOADS)
    service = replace(api.service, uploads=place)
    api.service.input_images._store = place
    api.client._transport.app.state.service = service
    size = 15_000_000
    (folder / "large").write_bytes(b"x" * 50_000_000)
    ticket = (await api.post("/api/v3/media/uploads", filename="a", size=size)).json()["data"]
    answer = await api.client.put(ticket["upload"]["url"], content=b"x" * size)
    assert (answer.status_code, "No space left" in answer.json()["message"]) == (503, True)
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / "large"]
