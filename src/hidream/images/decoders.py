"""A pool of processes that decode untrusted images, fair between keys.

The calling process parses no byte of such a file. A job that takes too much time or memory is killed and raises
InvalidInput. It does not delay other keys, because each key has one job at a time, and keys take turns. If the caller
is cancelled, the job is killed. `zygote` is the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hidream.errors import InvalidInput, ObjectStoreUnavailable
from hidream.images.protocol import IDENTIFY_LIMITS, NO_MEMORY, PREPARE_LIMITS, STATUS, Limits, NoResult, Result
from hidream.images.structure import ACCEPTED
from hidream.types import ImageFormat, Size

if TYPE_CHECKING:
    from hidream.images.prepared import Prepared

PROCESSES = 2
"""Jobs at a time; the largest takes a GB of memory and a core for seconds."""
TRIES = 2
"""Attempts for a job whose process could not be started or was killed from outside."""
_INHERITED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
"""The environment variables that are passed on; the others may contain keys and passwords."""

File = bytes | Path | Callable[[], Awaitable[bytes]]
"""An image file: its contents, its path, or a function that reads it when the job starts."""


class Decoders:
    """The decoder processes of one process; they are started on first use, and end with this object.

    Every call gives the `key` that the file belongs to; a key has one job at a time. Calls raise ObjectStoreUnavailable
    after `close`, or if no process can be started, and whatever reading the file raises.
    """

    def __init__(self, processes: int = PROCESSES) -> None:
        self._idle = [_Zygote() for _ in range(processes)]
        self._all = tuple(self._idle)
        self._waiting: dict[str, deque[asyncio.Future[_Zygote]]] = {}  # in the order of their keys' turns
        self._busy: set[str] = set()
        self._closed = False

    async def identify(self, key: str, field: str, file: File, limits: Limits = IDENTIFY_LIMITS) -> ImageFormat:
        """Check that a file is an image, and return its format. Raises InvalidInput, which names `field`."""
        return (await self._do(key, {"name": "identify", "field": field}, [file], limits)).image_format()

    async def oriented_size(self, key: str, field: str, file: File) -> tuple[int, int]:
        """Read width and height after EXIF orientation. Raises InvalidInput, which names `field`."""
        return (await self._do(key, {"name": "oriented_size", "field": field}, [file], IDENTIFY_LIMITS)).size()

    async def prepare(
        self, key: str, sizes: Sequence[Size], image: File, mask: File | None, limits: Limits = PREPARE_LIMITS
    ) -> Prepared:
        """Prepare an image, and its mask if there is one, for these sizes. Raises InvalidInput."""
        job = {"name": "prepare", "field": "image", "sizes": [(size.width, size.height) for size in sizes]}
        files = [image] if mask is None else [image, mask]
        return (await self._do(key, job, files, limits)).prepared(sizes)

    def close(self) -> None:
        """Kill all jobs and processes; waiting calls raise ObjectStoreUnavailable."""
        self._closed = True
        for zygote_ in self._all:
            zygote_.stop()
        for each in [each for waiting in self._waiting.values() for each in waiting if not each.done()]:
            each.set_exception(_stopping("an image"))
        self._waiting.clear()

    async def _do(self, key: str, job: dict[str, Any], files: Sequence[File], limits: Limits) -> Result:
        process = await self._acquire(key)
        field = job["field"]
        try:
            for _ in range(TRIES):
                if self._closed:
                    break
                result = await process.ask(job | asdict(limits), files, field)
                if result is not None:
                    return result
        except NoResult as error:
            raise _damaged(field) from error
        finally:
            self._release(key, process)
        if self._closed:
            raise _stopping(field)
        raise ObjectStoreUnavailable(f"{field} cannot be read now: no process is available for it; try again later")

    async def _acquire(self, key: str) -> _Zygote:
        """Wait for the key's turn and a free process."""
        if self._closed:
            raise _stopping("an image")
        if key not in self._busy and self._idle:
            self._busy.add(key)
            return self._idle.pop()
        granted: asyncio.Future[_Zygote] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(granted)
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._release(key, granted.result())  # granted while the wait was cancelled
            raise

    def _release(self, key: str, process: _Zygote) -> None:
        """Return a process to the pool, and hand free processes to the keys whose turn it is."""
        self._busy.discard(key)
        self._idle.append(process)
        if key in self._waiting:
            self._waiting[key] = self._waiting.pop(key)  # behind all others
        for each in [other for other in self._waiting if other not in self._busy]:
            if not self._idle:
                return
            self._hand_over(each)

    def _hand_over(self, key: str) -> None:
        """Give a process to the first waiting job of a key, and move the key behind all others."""
        waiting = self._waiting.pop(key)
        while waiting:
            first = waiting.popleft()
            if not first.done():
                self._busy.add(key)
                first.set_result(self._idle.pop())
                break
        if waiting:
            self._waiting[key] = waiting


class _Zygote:
    """One process that forks for jobs, one at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._awaited = self._stopped = False
        self._end: weakref.finalize[..., Any] | None = None

    async def ask(self, job: dict[str, Any], files: Sequence[File], field: str) -> Result | None:
        """Run a job; None if the process itself has ended. Raises InvalidInput, NoResult."""
        with contextlib.ExitStack() as opened:
            out = opened.enter_context(_anonymous())
            given = [opened.enter_context(await _opened(file)) for file in files]
            try:
                status = await self._status(job, [out.fileno(), *(file.fileno() for file in given)])
            except BaseException:
                self.end()  # the result is not needed
                raise
            if status is None:
                self.end()
                return None
            if status:
                raise _ended(status, field, job)
            return Result(out.fileno())

    async def _status(self, job: dict[str, Any], files: Sequence[int]) -> int | None:
        if self._stopped:
            return None
        loop, control = asyncio.get_running_loop(), self._socket or self._start()
        self._awaited = True
        try:
            socket.send_fds(control, [json.dumps(job).encode()], files)
            status = await loop.sock_recv(control, STATUS.size)
        except OSError:
            return None
        finally:
            self._awaited = False
        return int(STATUS.unpack(status)[0]) if len(status) == STATUS.size else None

    def stop(self) -> None:
        """Kill the process and its forks for good; a waiting `ask` returns None."""
        self._stopped = True
        if self._awaited and self._process is not None:
            _kill(self._process)  # the waiting `ask` sees the end of the socket, so it stays open
        else:
            self.end()

    def end(self) -> None:
        """Kill the process and its forks; another is started when it is needed."""
        if self._end is not None:
            self._end()
        self._process = self._socket = self._end = None

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            environ = {name: os.environ[name] for name in _INHERITED if name in os.environ}
            process = subprocess.Popen(
                [sys.executable, "-m", "hidream.images.zygote"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
        ours.setblocking(False)
        self._process, self._socket = process, ours
        self._end = weakref.finalize(self, _forget, process, ours)
        return ours


def _forget(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    control.close()
    _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its session, to which its forks belong."""
    if process.returncode is None:  # else the pid may have been reused
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _anonymous() -> Any:  # noqa: ANN401 - typeshed gives it three names
    """Create a file without a name, in memory if the platform supports that."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("hidream-image"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


async def _opened(file: File) -> Any:  # noqa: ANN401 - as above
    return await asyncio.to_thread(_open, await file() if callable(file) else file)


def _open(file: bytes | Path) -> Any:  # noqa: ANN401 - as above
    if isinstance(file, Path):
        return file.open("rb", buffering=0)
    opened = _anonymous()
    view = memoryview(file)
    while view:
        view = view[opened.write(view) :]
    return opened


def _ended(status: int, field: str, limits: dict[str, Any]) -> InvalidInput:
    """Make the error for a job that ended without a result."""
    if status in (-signal.SIGXCPU, -signal.SIGALRM):
        return InvalidInput(
            f"{field} takes more than {limits['cpu_s']} seconds to read; accepted: an image that is simpler to decode, "
            "or of fewer pixels"
        )
    if status in (-signal.SIGKILL, NO_MEMORY):
        return InvalidInput(f"{field} takes more memory than it may; accepted: an image of fewer pixels")
    return _damaged(field)


def _damaged(field: str) -> InvalidInput:
    return InvalidInput(f"{field} cannot be read: the file is damaged; {ACCEPTED}")


def _stopping(field: str) -> ObjectStoreUnavailable:
    return ObjectStoreUnavailable(f"{field} cannot be read now: the process is stopping; try again later")
