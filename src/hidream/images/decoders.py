"""Strangers' images, decoded elsewhere: a few processes, and whose turn it is.

No byte of a stranger's file is read in the process that asks. A job that takes too much time or memory ends alone, with
an InvalidInput; it holds nobody else up, because a key has one job at a time, and keys take turns. Giving a job up ends
it. `zygote` is the other side.
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
from hidream.images.answers import IDENTIFY_LIMITS, NO_MEMORY, PREPARE_LIMITS, STATUS, Limits, NoResult, Result
from hidream.images.structure import ACCEPTED
from hidream.types import ImageFormat, Size

if TYPE_CHECKING:
    from hidream.images.prepared import Prepared

PROCESSES = 2
"""Jobs at a time: the largest takes a GB and a core for seconds."""
TRIES = 2
"""Of a job whose process could not be started, or was ended by others."""
_INHERITED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
"""Of the environment; the rest of it has keys and passwords."""

File = bytes | Path | Callable[[], Awaitable[bytes]]
"""An image file: its content, where it lies, or what reads it once its turn has come."""


class Decoders:
    """The processes of one asking process; they are started when they are first needed, and end with this object.

    Every call names whose file it is: a `key` has one job at a time. Raises ObjectStoreUnavailable once it is closed,
    or where no process can be had, and what reading the file raises.
    """

    def __init__(self, processes: int = PROCESSES) -> None:
        self._idle = [_Zygote() for _ in range(processes)]
        self._all = tuple(self._idle)
        self._waiting: dict[str, deque[asyncio.Future[_Zygote]]] = {}  # in the order of their keys' turns
        self._busy: set[str] = set()
        self._closed = False

    async def look(self, key: str, field: str, file: File, limits: Limits = IDENTIFY_LIMITS) -> ImageFormat:
        """See that a file is an image. Raises InvalidInput, which names `field`."""
        return (await self._do(key, {"job": "look", "field": field}, [file], limits)).image_format()

    async def shown_size(self, key: str, field: str, file: File, limits: Limits = IDENTIFY_LIMITS) -> tuple[int, int]:
        """Read width and height as the image is shown. Raises InvalidInput, which names `field`."""
        return (await self._do(key, {"job": "shown_size", "field": field}, [file], limits)).size()

    async def prepare(
        self, key: str, sizes: Sequence[Size], image: File, mask: File | None, limits: Limits = PREPARE_LIMITS
    ) -> Prepared:
        """Read an image, and perhaps its mask, for these sizes. Raises InvalidInput."""
        question = {"job": "prepare", "field": "image", "sizes": [(size.width, size.height) for size in sizes]}
        files = [image] if mask is None else [image, mask]
        return (await self._do(key, question, files, limits)).prepared(sizes)

    def close(self) -> None:
        """End whatever is decoded, and all processes; who waits is told so."""
        self._closed = True
        for zygote_ in self._all:
            zygote_.stop()
        for each in [each for waiting in self._waiting.values() for each in waiting if not each.done()]:
            each.set_exception(_stopping("an image"))
        self._waiting.clear()

    async def _do(self, key: str, question: dict[str, Any], files: Sequence[File], limits: Limits) -> Result:
        process = await self._acquire(key)
        field = question["field"]
        try:
            for _ in range(TRIES):
                if self._closed:
                    break
                result = await process.ask(question | asdict(limits), files, field)
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
        """Wait for a process that is free, and for the key's turn."""
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
                self._release(key, granted.result())  # it was given in the moment in which nobody wanted it any more
            raise

    def _release(self, key: str, process: _Zygote) -> None:
        """Give a process back, and to whose turn it is."""
        self._busy.discard(key)
        self._idle.append(process)
        if key in self._waiting:
            self._waiting[key] = self._waiting.pop(key)  # behind all others
        for each in [other for other in self._waiting if other not in self._busy]:
            if not self._idle:
                return
            self._hand_over(each)

    def _hand_over(self, key: str) -> None:
        """Let the first that waits of a key have a process; the key's next turn comes after all others'."""
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

    async def ask(self, question: dict[str, Any], files: Sequence[File], field: str) -> Result | None:
        """Have a job done; None if the process itself has ended, by whomever. Raises InvalidInput, NoAnswer."""
        with contextlib.ExitStack() as opened:
            out = opened.enter_context(_anonymous())
            given = [opened.enter_context(await _opened(file)) for file in files]
            try:
                status = await self._status(question, [out.fileno(), *(file.fileno() for file in given)])
            except BaseException:
                self.end()  # what is computed is for nobody
                raise
            if status is None:
                self.end()
                return None
            if status:
                raise _ended(status, field, question)
            return Result(out.fileno())

    async def _status(self, question: dict[str, Any], files: Sequence[int]) -> int | None:
        if self._stopped:
            return None
        loop, control = asyncio.get_running_loop(), self._socket or self._start()
        self._awaited = True
        try:
            socket.send_fds(control, [json.dumps(question).encode()], files)
            said = await loop.sock_recv(control, STATUS.size)
        except OSError:
            return None
        finally:
            self._awaited = False
        return int(STATUS.unpack(said)[0]) if len(said) == STATUS.size else None

    def stop(self) -> None:
        """Kill the process, and what it has forked, for good; who waits for an answer is told that there is none."""
        self._stopped = True
        if self._awaited and self._process is not None:
            _kill(self._process)  # the socket stays open for who waits there, and sees that the other end is closed
        else:
            self.end()

    def end(self) -> None:
        """Kill the process and what it has forked; another is started when one is needed."""
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
    """End a process, whose session its forks belong to."""
    if process.returncode is None:  # else the number may be another's by now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _anonymous() -> Any:  # noqa: ANN401 - typeshed gives it three names
    """Make a file that has no name, in memory where there is such a thing."""
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
    """Say why a job has no answer."""
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
