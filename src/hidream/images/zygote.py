"""The process that decodes untrusted images: it is started once, imports what it needs, and forks for each job.

A fork takes milliseconds; starting Python takes a quarter of a second. A fork has limits and one job: it writes a
result and exits, or is killed. Nothing of one job's file is in memory for the next job. The process knows no secrets,
and has only the files of the job open. Its standard input is a socket to its parent, so it ends with the parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import resource
import select
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from hidream.images.image_file import UNTRUSTED_FORMATS
from hidream.images.jobs import run_job
from hidream.images.measure import identify, oriented_size
from hidream.images.prepared import prepare
from hidream.images.protocol import BROKEN, NO_MEMORY, STATUS
from hidream.types import Size

JOB_MAX_BYTES = 2**16
FILES_MAX = 3
"""The result, the image and the mask."""
DESCRIPTORS_MAX = 32
LOW_PRIORITY_AFTER_S = 0.2
"""The time after which a job gets a lower priority."""
LOWER_BY, LOWEST = 10, 19
"""Added to the nice value of such a job, up to the lowest priority that Linux has.

The job then gets a tenth of the time that an ordinary process of this server gets on the same core.
"""
PR_SET_NO_NEW_PRIVS = 38
"""From linux/prctl.h: no program that this process starts can gain more privileges."""


def main() -> None:
    """Fork for one job after the other, until the other end of the socket closes."""
    with contextlib.suppress(AttributeError, OSError):  # only on Linux
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _warm_up()
    gc.freeze()
    with socket.socket(fileno=sys.stdin.fileno()) as control, contextlib.suppress(ConnectionError):
        while True:
            job, files, _, _ = socket.recv_fds(control, JOB_MAX_BYTES, FILES_MAX)
            if not job:
                return
            status = _run_in_fork(json.loads(job), files)
            for file in files:
                os.close(file)
            control.sendall(STATUS.pack(status))


def _warm_up() -> None:
    """Read a small file of each format, so that no fork has to import what Pillow imports lazily."""
    Image.init()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for image_format in UNTRUSTED_FORMATS:
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, image_format, exif=exif)
        identify("image", file.getvalue())
        oriented_size("image", file.getvalue(), UNTRUSTED_FORMATS)
        prepare([Size(8, 8)], file.getvalue(), file.getvalue(), UNTRUSTED_FORMATS)


def _run_in_fork(job: dict[str, Any], files: list[int]) -> int:
    """Run a job in a forked process, and return its exit status."""
    pid = os.fork()
    if pid == 0:
        os._exit(_job(job, files))
    _lower_priority(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _lower_priority(pid: int) -> None:
    """Lower a job's priority, unless it ends soon, as it does for an ordinary image."""
    with contextlib.suppress(AttributeError, OSError):  # Linux alone has it
        job = os.pidfd_open(pid)
        try:
            if not select.select([job], [], [], LOW_PRIORITY_AFTER_S)[0]:
                nice = os.getpriority(os.PRIO_PROCESS, 0) + LOWER_BY  # the server's own may not be 0
                os.setpriority(os.PRIO_PROCESS, pid, min(nice, LOWEST))
        finally:
            os.close(job)


def _job(job: dict[str, Any], files: list[int]) -> int:
    try:
        _limit(job)
        warnings.simplefilter("ignore")
        out, *given = files
        run_job(job, [_content(file) for file in given], out)
    except MemoryError:
        return NO_MEMORY
    except BaseException:  # an edge: the exit status reports it
        return BROKEN
    return 0


def _content(file: int) -> bytes:
    with os.fdopen(file, "rb", closefd=False) as stream:
        stream.seek(0)
        return stream.read()


def _limit(job: dict[str, Any]) -> None:
    """Set the limits of this process, and make it the first to be killed when memory is short."""
    os.close(0)  # only the parent uses the socket
    signal.alarm(job["wall_s"])
    cpu_s, memory_bytes = job["cpu_s"], job["memory_bytes"]
    for limit, soft, hard in (
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1),
        (resource.RLIMIT_DATA, memory_bytes, memory_bytes),
        (resource.RLIMIT_FSIZE, memory_bytes, memory_bytes),
        (resource.RLIMIT_NOFILE, DESCRIPTORS_MAX, DESCRIPTORS_MAX),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _, most = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        with contextlib.suppress(OSError, ValueError):  # a platform that does not know the limit
            resource.setrlimit(limit, (soft, hard))
    with contextlib.suppress(OSError):  # Linux alone has it
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
