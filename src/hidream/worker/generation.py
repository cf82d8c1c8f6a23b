"""Generating one task: read its init image, generate its images, check, encode and store them.

A task yields all of its images or none. The engine generates them together. Each image is checked and encoded when it
is finished, and the files are written when all are. The worker's loop reports the outcome to the database.
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
    """What generating a task needs beside the bridge: the image classifier, object stores, versions and decoders.

    `versions` has the version of each model in each mode; `decoders` read init images and masks.
    """

    flagged: Callable[[np.ndarray], bool]
    outputs: ObjectStore
    uploads: ObjectStore
    versions: Mapping[str, Mapping[Mode, str]]
    decoders: Decoders = field(default_factory=Decoders)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A claimed task, its progress, the event that aborts it, and whether it occupies the worker's reserve."""

    task: Prediction
    progress: TaskProgress
    aborted: asyncio.Event
    reserved: bool = False

    @classmethod
    def of(cls, task: Prediction, *, reserved: bool = False) -> Job:
        """Create the job of a task that was just claimed."""
        return cls(task, TaskProgress(task.input.num_images), asyncio.Event(), reserved)

    @property
    def work_left(self) -> int:
        """The work that is left, in pixel steps."""
        return round(self.task.work * self.progress.left)


@dataclass(frozen=True, slots=True)
class Generated:
    """The result of a task whose files are stored."""

    nsfw: tuple[bool, ...]
    inference_ms: int
    warnings: tuple[str, ...]
    output_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _File:
    """An encoded image."""

    data: bytes
    nsfw: bool
    inference_s: float
    warnings: tuple[str, ...]


async def generate(bridge: Bridge, tools: Tools, job: Job) -> Generated:
    """Generate the images of a task, and store their files.

    Raises InvalidInput if an upload is missing or broken, what `Bridge.generate` raises, and Interrupted once the job
    is aborted. Waits while an object store is unavailable.
    """
    task, aborted = job.task, job.aborted
    requests = requests_of(task.input)
    prepared = await _prepared(bridge, tools, job, requests[0])
    files = await _all(_file(bridge, tools, job, i, request, prepared) for i, request in enumerate(requests))
    if aborted.is_set():
        raise Interrupted("the images were aborted before they were stored")
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


def requests_of(request: ImageRequest) -> list[ImageRequest]:
    """Return one request per image of a task, with consecutive seeds; 0 follows the largest seed.

    An init image and a mask become empty bytes, which only say that they exist: the content comes from a client, and
    must not reach the process that generates.
    """
    image, mask = (None if file is None else b"" for file in (request.image, request.mask))
    return [
        replace(request, seed=(request.seed + i) % (SEED_MAX + 1), num_images=1, image=image, mask=mask)
        for i in range(request.num_images)
    ]


async def _prepared(bridge: Bridge, tools: Tools, job: Job, request: ImageRequest) -> Prepared | None:
    """Decode the init image and mask of a task, once for all its images. Raises InvalidInput and Interrupted."""
    task, aborted = job.task, job.aborted
    if not isinstance(task.input.image, str):
        return None
    image = partial(_upload, tools.uploads, "image", task.input.image)
    mask = partial(_upload, tools.uploads, "mask", task.input.mask) if isinstance(task.input.mask, str) else None
    sizes = bridge.init_image_sizes(task.model, request)
    prepare = partial(tools.decoders.prepare, task.key_id, sizes, image, mask)
    return await _unless_aborted(aborted, retry_unavailable(prepare, aborted, "read_image"))


async def _unless_aborted(aborted: asyncio.Event, work: Awaitable[T]) -> T:
    """Return the result of `work`; if `aborted` is set before, cancel it and raise Interrupted."""
    working, aborting = asyncio.ensure_future(work), asyncio.create_task(aborted.wait())
    try:
        await asyncio.wait((working, aborting), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Interrupted("the images were aborted before their init image was read")
        return working.result()
    finally:
        for each in (working, aborting):
            each.cancel()
        await asyncio.gather(working, aborting, return_exceptions=True)


async def _upload(uploads: ObjectStore, field: str, name: str) -> bytes:
    try:
        return await uploads.read(name)
    except NotFound as error:
        raise InvalidInput(
            f"{field} is a file that does not exist, or no longer exists; accepted: a recently uploaded file"
        ) from error


async def _file(
    bridge: Bridge, tools: Tools, job: Job, i: int, request: ImageRequest, prepared: Prepared | None
) -> _File:
    task, options = job.task, job.task.input
    request_id = f"{task.id}/{task.attempt}/{i}"  # after a lost lease, the next attempt may begin before this one ends
    listener = job.progress.listener(i)
    image = await bridge.generate(
        task.model, request_id, request, job.aborted, listener, prepared, priority=task.priority
    )
    nsfw = options.enable_safety_checker and await asyncio.to_thread(tools.flagged, image.pixels)
    data = await asyncio.to_thread(
        encode,
        image.pixels,
        options.output_format,
        seed=request.seed,
        version=task.version,
        output_quality=options.output_quality,
    )
    return _File(data, nsfw, image.timings.inference_s, image.warnings)


async def _all(parts: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all; if one raises, cancel the others and raise its error."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
