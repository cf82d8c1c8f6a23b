"""One task from its row to its files: read what it starts from, draw its pictures, check, encode and store them.

All of its pictures or none. The engine draws them side by side; each is checked and encoded when it is done, and the
files are written when all are. What is said to the store about it, the loop does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from hidream.errors import Interrupted, InvalidInput, NotFound
from hidream.images.decoders import Decoders
from hidream.outputs.encode import encode
from hidream.outputs.object_store import ObjectStore
from hidream.request import ImageRequest
from hidream.store.prediction import Prediction
from hidream.types import SEED_MAX, Mode
from hidream.worker.bridge import Bridge
from hidream.worker.progress import TaskProgress
from hidream.worker.retry import retry_unavailable

if TYPE_CHECKING:
    import numpy as np

    from hidream.images.prepared import Prepared

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tools:
    """What a picture goes through beside the bridge: the image classifier, and the places where files lie.

    `versions` is what each model is called in each mode; `decoders` read the images that tasks start from.
    """

    flagged: Callable[[np.ndarray], bool]
    outputs: ObjectStore
    uploads: ObjectStore
    versions: Mapping[str, Mapping[Mode, str]]
    decoders: Decoders = field(default_factory=Decoders)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A claimed task, how far it is, what is set to end it, and whether it was claimed for the worker's reserve."""

    task: Prediction
    progress: TaskProgress
    aborted: asyncio.Event
    reserved: bool = False

    @classmethod
    def of(cls, task: Prediction, *, reserved: bool = False) -> Job:
        """Make a job of a task that has just been claimed."""
        return cls(task, TaskProgress(task.input.num_images), asyncio.Event(), reserved)

    @property
    def work_left(self) -> int:
        """What is still to be drawn, in pixel steps."""
        return round(self.task.work * self.progress.left)


@dataclass(frozen=True, slots=True)
class Generated:
    """What the store wants to know of a task whose files are in their places."""

    nsfw: tuple[bool, ...]
    inference_ms: int
    warnings: tuple[str, ...]
    output_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _File:
    """One picture as bytes."""

    data: bytes
    nsfw: bool
    inference_s: float
    warnings: tuple[str, ...]


async def generate(bridge: Bridge, tools: Tools, job: Job) -> Generated:
    """Draw a task's pictures and put their files in their places.

    Raises InvalidInput on uploads that are missing or broken, what `Bridge.draw` raises, and Interrupted once the job
    is given up. While a place is away, it waits.
    """
    task, aborted = job.task, job.aborted
    requests = requests_of(task.input)
    prepared = await _prepared(bridge, tools, job, requests[0])
    files = await _all(_file(bridge, tools, job, i, request, prepared) for i, request in enumerate(requests))
    if aborted.is_set():
        raise Interrupted("the pictures were given up before they were stored")
    await _all(
        retry_unavailable(partial(tools.outputs.write, name, file.data), aborted, "write")
        for name, file in zip(task.output_names, files, strict=True)
    )
    return Generated(
        nsfw=tuple(file.nsfw for file in files),
        inference_ms=round(1000 * sum(file.inference_s for file in files)),
        warnings=tuple(dict.fromkeys(warning for file in files for warning in file.warnings)),
        output_bytes=sum(len(file.data) for file in files),
    )


def requests_of(asked: ImageRequest) -> list[ImageRequest]:
    """Make a request for each image of a task; their seeds follow one another, and 0 follows the largest.

    Of an image to start from, and of a mask, they say that there is one: the bytes are a stranger's, and no business of
    the process that generates.
    """
    image, mask = (None if file is None else b"" for file in (asked.image, asked.mask))
    return [
        replace(asked, seed=(asked.seed + i) % (SEED_MAX + 1), num_images=1, image=image, mask=mask)
        for i in range(asked.num_images)
    ]


async def _prepared(bridge: Bridge, tools: Tools, job: Job, request: ImageRequest) -> Prepared | None:
    """Have a task's image and mask read, once for all its pictures. Raises InvalidInput, and Interrupted."""
    task, aborted = job.task, job.aborted
    if not isinstance(task.input.image, str):
        return None
    image = partial(_upload, tools.uploads, "image", task.input.image)
    mask = partial(_upload, tools.uploads, "mask", task.input.mask) if isinstance(task.input.mask, str) else None
    sizes = bridge.init_image_sizes(task.model, request)
    read = partial(tools.decoders.prepare, task.key_id, sizes, image, mask)
    return await _unless(aborted, retry_unavailable(read, aborted, "read_image"))


async def _unless(aborted: asyncio.Event, work: Awaitable[T]) -> T:
    """Wait for `work`, and end it once it is given up. Raises Interrupted then."""
    working, leaving = asyncio.ensure_future(work), asyncio.create_task(aborted.wait())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Interrupted("the images were given up before what they start from was read")
        return working.result()
    finally:
        for each in (working, leaving):
            each.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _upload(uploads: ObjectStore, field: str, name: str) -> bytes:
    try:
        return await uploads.read(name)
    except NotFound as error:
        raise InvalidInput(
            f"{field} is a file that is not there, or no longer; accepted: one that was uploaded lately"
        ) from error


async def _file(
    bridge: Bridge, tools: Tools, job: Job, i: int, request: ImageRequest, prepared: Prepared | None
) -> _File:
    task, asked = job.task, job.task.input
    drawn_as = f"{task.id}/{task.attempt}/{i}"  # of a lost lease, the next attempt may begin before this one has ended
    picture = await bridge.generate(task.model, drawn_as, request, job.aborted, job.progress.listener(i), prepared)
    nsfw = asked.enable_safety_checker and await asyncio.to_thread(tools.flagged, picture.pixels)
    data = await asyncio.to_thread(
        encode,
        picture.pixels,
        asked.output_format,
        seed=request.seed,
        version=task.version,
        output_quality=asked.output_quality,
    )
    return _File(data, nsfw, picture.timings.inference_s, picture.warnings)


async def _all(parts: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all; when one raises, end the others and raise the same."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
