"""Untrusted images, decoded in another process: the same pixels, limited time and memory, and fairness between keys."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hidream.errors import InvalidInput, NotFound, ObjectStoreUnavailable
from hidream.images.decoders import Decoders
from hidream.images.prepared import prepare
from hidream.images.protocol import IDENTIFY_LIMITS, PREPARE_LIMITS, NoResult, Result
from hidream.types import ImageFormat, Size
from image_files import noise, progressive_jpeg, saved

pytestmark = pytest.mark.integration

SIZES = [Size(64, 96), Size(256, 256)]
SOON = replace(IDENTIFY_LIMITS, cpu_s=1)
PHOTO = saved(noise(320, 200), "JPEG")


@functools.cache
def slow_image() -> bytes:
    """An image that passes what is counted, and takes seconds."""
    return progressive_jpeg(8192, 32)


def holed() -> bytes:
    image = noise(320, 200)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return saved(image)


def children(of: int) -> list[int]:
    """Processes that a process has started."""
    return [int(pid) for pid in read(Path(f"/proc/{of}/task/{of}/children")).split()]


def read(file: Path) -> bytes:
    """A file of a process; nothing if the process has ended, even since the file was opened (ESRCH)."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return file.read_bytes()
    return b""


def zygotes() -> list[int]:
    named = ((pid, read(Path(f"/proc/{pid}/cmdline"))) for pid in children(os.getpid()))
    return [pid for pid, command in named if b"hidream.images.zygote" in command]


async def working() -> int:
    """Wait until a job is being done; the process that does it."""
    async with asyncio.timeout(30):
        while not (found := [job for zygote in zygotes() for job in children(zygote)]):
            await asyncio.sleep(0.005)
    return found[0]


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_mask", [False, True])
async def test_the_pixels_are_those_that_are_read_here(with_mask):
    mask = saved(Image.linear_gradient("L").resize((320, 200))) if with_mask else None
    with closing(Decoders(2)) as decoders:
        there = await decoders.prepare("key", SIZES, holed(), mask)
    here = prepare(SIZES, holed(), mask)
    assert there.warnings == here.warnings
    for size in SIZES:
        theirs, ours = there.planes[size], here.planes[size]
        for name in ("image", "mask", "alpha"):
            a, b = getattr(theirs, name), getattr(ours, name)
            assert (a.dtype, a.flags.writeable) == (b.dtype, True)
            assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
async def test_it_says_what_a_file_is_by_its_bytes_or_where_it_lies(kind, tmp_path):
    (tmp_path / "file").write_bytes(data := saved(Image.new("RGB", (40, 20)), kind))

    with closing(Decoders(2)) as decoders:
        for file in (data, tmp_path / "file"):
            assert await decoders.identify("key", "image", file) is ImageFormat(kind.lower())
            assert await decoders.oriented_size("key", "image", file) == (40, 20)


async def test_what_is_wrong_is_said_as_it_would_be_here():
    with closing(Decoders(2)) as decoders:
        with pytest.raises(InvalidInput, match=r"^mask is not an image that can be read \(5 bytes\); accepted: a PNG"):
            await decoders.identify("key", "mask", b"hello")
        with pytest.raises(InvalidInput, match=r"^mask is 40\*20 pixels and image 320\*200; accepted: equal sizes$"):
            await decoders.prepare("key", SIZES, PHOTO, saved(Image.new("L", (40, 20))))
        with pytest.raises(InvalidInput, match="33 scans or more"):
            await decoders.prepare("key", SIZES, progressive_jpeg(8192, 400), None)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "BMP", "PPM", "ICO"])
async def test_other_formats_are_none_of_pillows_business(kind):
    with closing(Decoders(2)) as decoders, pytest.raises(InvalidInput, match="is not an image that can be read"):
        await decoders.prepare("key", SIZES, saved(Image.new("RGB", (32, 32)), kind), None)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"hello",
        b"[1]",
        b"{}",
        b'{"layers": [[true, true]], "warnings": []}',
        b'{"layers": [[1, 2], [3, 4]], "warnings": []}',
        b'{"layers": [[false, false], [false, false]], "warnings": [5]}',
        b'{"layers": [[false, false], [false, false]], "warnings": "none"}',
        b'{"size": [0, 1e9], "format": ["png"]}',
        b"[" * 60_000,
    ],
)
def test_what_a_broken_process_says_is_believed_in_nothing(tmp_path, said):
    path = tmp_path / "answer"
    path.write_bytes(bytes(64) + said + len(said).to_bytes(8, "little"))
    with path.open("r+b") as file:
        for read in (Result.image_format, Result.size, lambda answer: answer.prepared(SIZES)):
            with pytest.raises(NoResult):
                read(Result(file.fileno()))


# --- limits ----------------------------------------------------------------------------------------------------------


async def test_what_takes_too_long_ends_and_says_so():
    with closing(Decoders(1)) as decoders:
        with pytest.raises(InvalidInput, match=r"^image takes more than 1 seconds to read; accepted: "):
            await decoders.identify("key", "image", slow_image(), SOON)
        assert await decoders.identify("key", "image", PHOTO) is ImageFormat.JPEG


async def test_what_sleeps_ends_by_the_clock():
    with closing(Decoders(2)) as decoders:
        asking = asyncio.create_task(
            decoders.identify("key", "image", slow_image(), replace(IDENTIFY_LIMITS, wall_s=1))
        )
        os.kill(await working(), signal.SIGSTOP)  # takes no core, as if others had them all
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asking), 1.5)
        (job,) = [job for zygote in zygotes() for job in children(zygote)]
        os.kill(job, signal.SIGCONT)
        with pytest.raises(InvalidInput, match="takes more than 10 seconds to read"):
            await asking


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="other systems have no limit on memory that holds")
async def test_what_takes_too_much_memory_ends_and_says_so():
    with closing(Decoders(1)) as decoders:
        large = saved(Image.new("RGB", (8192, 8192), "red"))
        with pytest.raises(InvalidInput, match=r"^image .*memory.*; accepted: an image of fewer pixels$"):
            await decoders.prepare("key", SIZES, large, None, replace(PREPARE_LIMITS, memory_bytes=2**28))
        assert await decoders.prepare("key", SIZES, PHOTO, None)


async def test_the_first_to_go_when_memory_is_short_is_the_job():
    with closing(Decoders(2)) as decoders:
        asking = asyncio.create_task(decoders.identify("key", "image", slow_image()))
        os.kill(await working(), signal.SIGKILL)  # as Linux does
        with pytest.raises(InvalidInput, match=r"^image takes more memory than it may; accepted: "):
            await asking
        assert await decoders.identify("key", "image", PHOTO) is ImageFormat.JPEG


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="other systems do not say when a process has ended")
async def test_what_takes_long_is_put_behind_other_processes():
    with closing(Decoders(2)) as decoders:
        asking = asyncio.create_task(decoders.identify("key", "image", slow_image()))
        job = await working()
        os.kill(job, signal.SIGSTOP)  # so that it does not end before its priority has been read
        async with asyncio.timeout(30):
            while os.getpriority(os.PRIO_PROCESS, job) != min(os.getpriority(os.PRIO_PROCESS, 0) + 10, 19):
                await asyncio.sleep(0.005)
        os.kill(job, signal.SIGCONT)
        asking.cancel()
        await asyncio.wait([asking])


# --- whose turn it is ------------------------------------------------------------------------------------------------


async def test_slow_images_of_one_key_hold_no_other_up():
    with closing(Decoders(2)) as decoders:
        await decoders.identify("quiet", "image", PHOTO)
        attack = [asyncio.create_task(decoders.identify("loud", "image", slow_image())) for _ in range(20)]
        await working()
        assert await decoders.identify("quiet", "image", PHOTO) is ImageFormat.JPEG
        assert not any(task.done() for task in attack), "it did not wait for one of them"
        assert len([job for zygote in zygotes() for job in children(zygote)]) == 1, "a key has one job at a time"
        for task in attack:
            task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*attack, return_exceptions=True)
        )
        assert await decoders.identify("loud", "image", PHOTO) is ImageFormat.JPEG


async def test_keys_take_turns():
    order = []

    async def ask(decoders, key):
        await decoders.identify(key, "image", PHOTO)
        order.append(key)

    with closing(Decoders(1)) as decoders:
        await asyncio.gather(*(ask(decoders, key) for key in ["a"] * 4 + ["b"] * 2 + ["c"]))
    assert order == ["a", "b", "c", "a", "b", "a", "a"]


async def test_a_file_is_read_when_its_turn_has_come():
    """So that those that wait are not in memory; what reading it raises is raised."""
    reading = most = 0

    async def read():
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await asyncio.sleep(0)
        reading -= 1
        return PHOTO

    async def gone():
        raise NotFound("there is no such file")

    with closing(Decoders(2)) as decoders:
        sizes = await asyncio.gather(*(decoders.oriented_size("key", "image", read) for _ in range(20)))
        assert set(sizes) == {(320, 200)}
        with pytest.raises(NotFound):
            await decoders.oriented_size("key", "image", gone)
        assert (await decoders.prepare("key", SIZES, read, None)).planes
    assert most == 1


async def test_a_file_that_is_read_while_all_is_closed_starts_nothing():
    with closing(Decoders(2)) as decoders:

        async def read():
            decoders.close()
            return PHOTO

        with pytest.raises(ObjectStoreUnavailable, match="the process is stopping"):
            await decoders.identify("key", "image", read)
        assert not zygotes()


async def test_who_gives_up_leaves_nothing_behind():
    with closing(Decoders(2)) as decoders:
        asking = asyncio.create_task(decoders.identify("key", "image", slow_image()))
        job = await working()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(10):
            while Path(f"/proc/{job}").exists():  # noqa: ASYNC240
                await asyncio.sleep(0.005)
        assert await decoders.identify("key", "image", PHOTO) is ImageFormat.JPEG


async def test_closing_ends_what_is_read_and_what_waits():
    with closing(Decoders(2)) as decoders:
        asking = [asyncio.create_task(decoders.identify("key", "image", slow_image())) for _ in range(3)]
        await working()
        started = time.monotonic()
        decoders.close()
        for end in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(end, ObjectStoreUnavailable)
        assert time.monotonic() - started < 1
        with pytest.raises(ObjectStoreUnavailable):
            await decoders.identify("key", "image", PHOTO)
        assert not zygotes()


async def test_a_process_that_was_ended_by_others_is_started_anew():
    with closing(Decoders(2)) as decoders:
        await decoders.identify("key", "image", PHOTO)
        for pid in zygotes():
            os.kill(pid, signal.SIGKILL)
        assert await decoders.identify("key", "image", PHOTO) is ImageFormat.JPEG


async def test_it_ends_with_whoever_has_started_it():
    async def scenario(decoders):
        await decoders.identify("key", "image", PHOTO)
        assert len(zygotes()) == 1

    await scenario(Decoders())
    gc.collect()
    assert not zygotes()


async def test_it_knows_no_secret(monkeypatch):
    monkeypatch.setenv("HIDREAM_API_KEY", "a secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")

    with closing(Decoders(2)) as decoders:
        await decoders.identify("key", "image", PHOTO)
        (pid,) = zygotes()
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes().lower()  # noqa: ASYNC240
        assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()  # noqa: ASYNC240
        opened = {each.name: each.readlink().name for each in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: ASYNC240
        assert opened.pop("0").startswith("socket:")
        assert opened.pop("1") == "null"
        assert set(opened) == {"2"}, "but for the log, no file of the process that has started it"


# --- at full size ----------------------------------------------------------------------------------------------------


MODES = {"PNG": ["RGBA", "RGB", "L", "I;16", "P"], "JPEG": ["RGB", "L", "CMYK"], "WEBP": ["RGBA", "RGB"]}


def _of(mode: str) -> Image.Image:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8192, 8192), dtype=np.uint8))
    return grey.convert("I").convert(mode) if mode == "I;16" else grey.convert("RGB").convert(mode)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
async def test_the_largest_that_is_accepted_is_within_the_limits(kind, mode):
    """8192² pixels as each format has them, with a mask as large, to the largest sizes."""
    large = saved(_of(mode), kind)
    mask = saved(Image.linear_gradient("L").resize((8192, 8192)))

    with closing(Decoders(2)) as decoders:
        assert await decoders.identify("key", "image", large) is ImageFormat(kind.lower())
        sizes = [Size(2048, 2048), Size(1024, 1024)]
        assert set((await decoders.prepare("key", sizes, large, mask)).planes) == set(sizes)
