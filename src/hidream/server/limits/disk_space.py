"""The free space of the disks that this process writes to: those of the database and of the files.

Below the operator's limit, no tasks or uploads are accepted. So accepted tasks can still be stored, and existing
results can be read and deleted. A database or a bucket on another machine is not checked.

A network file system may hang, and with it the thread that reads its free space. So only one thread does that at a
time, and the last result stays valid until it returns.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hidream.errors import DiskFull
from hidream.outputs.folder import Folder
from hidream.outputs.object_store import ObjectStore

CHECK_S = 1.0
"""How long a measurement is valid."""
TIMEOUT_S = 0.5
"""How long the request that starts a measurement waits for it; other requests do not wait."""
MB = 1_000_000


class DiskSpace:
    """The disks that hold some folders, and the space that must stay free on each; with 0, nothing is checked."""

    def __init__(
        self,
        folders: Iterable[Path],
        free_min_mb: int,
        clock: Callable[[], float] = time.monotonic,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._folders: Sequence[Path] = tuple(dict.fromkeys(folders)) if free_min_mb else ()
        self._free_min_mb = free_min_mb
        self._clock, self._timeout_s = clock, timeout_s
        self._measured_at = float("-inf")
        self._measuring: asyncio.Task[None] | None = None
        self._shortage: str | None = None

    async def shortage(self) -> str | None:
        """Describe the shortage; None if enough is free.

        The result may be a second old, or, if a disk hangs, as old as the hang.
        """
        if self._folders and self._measuring is None and self._clock() - self._measured_at >= CHECK_S:
            self._measuring = asyncio.create_task(self._measure_again())
            await asyncio.wait({self._measuring}, timeout=self._timeout_s)
        return self._shortage

    async def check(self) -> None:
        """Raise DiskFull if too little is free."""
        if (shortage := await self.shortage()) is not None:
            raise DiskFull(
                f"no new tasks or uploads are accepted: {shortage}; existing ones can be fetched and deleted"
            )

    async def _measure_again(self) -> None:
        try:
            self._shortage = await asyncio.to_thread(self._measure)
        finally:
            self._measured_at, self._measuring = self._clock(), None

    def _measure(self) -> str | None:
        try:
            free_mb = min(_free_bytes(folder) // MB for folder in self._folders)
        except OSError as error:
            return f"the server's free disk space cannot be read ({error.strerror})"
        if free_mb >= self._free_min_mb:
            return None
        return f"the server's disk has {free_mb} MB free, and {self._free_min_mb} MB must stay free"


def folders_of(database_url: str, files: ObjectStore) -> list[Path]:
    """List the folders of the database and of the files that are on this machine's disks."""
    kind, _, path = database_url.partition(":///")
    database = [Path(path).parent] if kind.startswith("sqlite") else []
    return database + ([files.root] if isinstance(files, Folder) else [])


def _free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is on, or will be on when it is created."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
