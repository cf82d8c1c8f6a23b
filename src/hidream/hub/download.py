"""One file from the Hub into the cache: resumed where an earlier download stopped, and checked before it is used.

`huggingface_hub` itself begins a file again after an interruption, and compares only its size (2.4,
`file_download._download_to_tmp_and_move`, `http_get`). Here the bytes that have arrived stay in
`blobs/DIGEST.incomplete`, also when the process is killed. A file gets the name of its digest, by which every program
finds it, only after its content has that digest.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, BinaryIO

from hidream.errors import HubError, Interrupted
from hidream.hub.remote import RemoteFile, http_error

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES = 2**20
WAITS_S = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Before each further attempt, counted from the last byte that arrived."""
LOCK_S = 0.5
"""How long a lock is waited for before `stop` is looked at."""
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quotas of this kind
TRANSIENT = (408, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Where a file comes from and goes to."""

    file: RemoteFile
    url: str
    headers: dict[str, str]
    blob: Path
    lock: Path

    @property
    def partial(self) -> Path:
        """Where the bytes are until all have arrived."""
        return self.blob.with_name(f"{self.blob.name}.incomplete")


@dataclass(slots=True)
class _Arrived:
    """What has arrived of a file, and its digest so far."""

    stream: BinaryIO
    digest: _Hash
    count: int

    def take(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:  # an unbuffered file may take less than it is given, as on a disk that is almost full
            rest = rest[self.stream.write(rest) :]
        self.digest.update(chunk)
        self.count += len(chunk)


def download(transfer: Transfer, on_bytes: Callable[[int], None], stop: Event) -> None:
    """Download a file unless another process has done so meanwhile; `on_bytes` gets the count of new bytes.

    The count is negative when bytes that had arrived turn out to be wrong. Raises HubError if the content is not what
    the Hub announced, or the disk is full; Interrupted after `stop`; and the errors of `huggingface_hub`.
    """
    for path in (transfer.blob, transfer.lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        while not _is_locked(held, transfer.lock):
            if stop.is_set():
                raise Interrupted(f"the download of {transfer.file.path} was interrupted")
        if is_there(transfer.blob, transfer.file):
            return
        try:
            _download(transfer, on_bytes, stop)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise HubError(
                f"no space is left for {transfer.file.path} in {transfer.blob.parent}; free some, or set HF_HOME to "
                "another disk, and run the command again: it goes on where it stopped"
            ) from error


def _is_locked(held: ExitStack, lock: Path) -> bool:
    """Take a lock until the end of `held`; False if another process still has it after `LOCK_S`."""
    from huggingface_hub.utils import WeakFileLock

    try:
        held.enter_context(WeakFileLock(lock, timeout=LOCK_S))
    except TimeoutError:
        return False
    return True


def is_there(blob: Path, file: RemoteFile) -> bool:
    """Whether a blob has the size of its file; its content was checked when it got its name."""
    try:
        return blob.stat().st_size == file.size_bytes
    except OSError:
        return False


def new_digest(file_digest: str, size_bytes: int) -> _Hash:
    """What computes a digest of the same kind: SHA-256, or the SHA-1 of a Git blob, which begins with its size."""
    if len(file_digest) == hashlib.sha256().digest_size * 2:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)


def _download(transfer: Transfer, on_bytes: Callable[[int], None], stop: Event) -> None:
    """Receive a file, and once more from its beginning if the bytes of an earlier download were wrong."""
    for _ in range(2):
        with transfer.partial.open("ab", buffering=0) as stream:
            arrived = _resume(transfer, stream)
            resumed = arrived.count
            _receive(transfer, arrived, on_bytes, stop)
            os.fsync(stream.fileno())
        found = arrived.digest.hexdigest()
        if found == transfer.file.digest:
            transfer.partial.replace(transfer.blob)
            return
        transfer.partial.unlink()
        on_bytes(-transfer.file.size_bytes)
        if not resumed:
            break
    raise HubError(
        f"{transfer.file.path} has arrived with the digest {found}, and the Hub announced {transfer.file.digest}: it "
        "was deleted and is not used; run the command again, and if that does not help, the file on the Hub is damaged"
    )


def _resume(transfer: Transfer, stream: BinaryIO) -> _Arrived:
    """Read what an earlier download has left; more than the file has is thrown away."""
    arrived = _Arrived(stream, new_digest(transfer.file.digest, transfer.file.size_bytes), 0)
    size = os.fstat(stream.fileno()).st_size
    if size > transfer.file.size_bytes:
        stream.truncate(0)
        size = 0
    with transfer.partial.open("rb") as earlier:
        while chunk := earlier.read(min(CHUNK_BYTES, size - arrived.count)):
            arrived.digest.update(chunk)
            arrived.count += len(chunk)
    return arrived


def _receive(transfer: Transfer, arrived: _Arrived, on_bytes: Callable[[int], None], stop: Event) -> None:
    """Request what is missing, again and again until all has arrived or `WAITS_S` attempts brought nothing."""
    waits = iter(WAITS_S)
    while arrived.count < transfer.file.size_bytes:
        before = arrived.count
        try:
            _request(transfer, arrived, on_bytes, stop)
        except http_error() as error:
            if not _is_transient(error):
                raise
            failure: Exception = error
        else:
            failure = HubError(f"the connection for {transfer.file.path} ends before the file does")
        if arrived.count >= transfer.file.size_bytes:
            return
        if arrived.count > before:
            waits = iter(WAITS_S)
        wait_s = next(waits, None)
        if wait_s is None:
            raise failure
        if stop.wait(wait_s):
            raise Interrupted(f"the download of {transfer.file.path} was interrupted")


def _request(transfer: Transfer, arrived: _Arrived, on_bytes: Callable[[int], None], stop: Event) -> None:
    """Make one request for the bytes from `arrived.count` on."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status

    timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT  # of silence, after which a connection counts as broken
    headers = transfer.headers | ({"Range": f"bytes={arrived.count}-"} if arrived.count else {})
    with get_session().stream("GET", transfer.url, headers=headers, timeout=timeout_s) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        if arrived.count and response.status_code != 206:  # the server has ignored the range
            on_bytes(-arrived.count)
            _begin_again(transfer, arrived)
        for chunk in response.iter_bytes():  # as they come: chunks of a fixed size would be lost with the connection
            if stop.is_set():
                raise Interrupted(f"the download of {transfer.file.path} was interrupted")
            if arrived.count + len(chunk) > transfer.file.size_bytes:
                raise HubError(f"{transfer.file.path} is longer than the {transfer.file.size_bytes:,} bytes announced")
            arrived.take(chunk)
            on_bytes(len(chunk))


def _begin_again(transfer: Transfer, arrived: _Arrived) -> None:
    arrived.stream.truncate(0)
    arrived.digest, arrived.count = new_digest(transfer.file.digest, transfer.file.size_bytes), 0


def _is_transient(error: Exception) -> bool:
    response = getattr(error, "response", None)
    return response is None or response.status_code in TRANSIENT
