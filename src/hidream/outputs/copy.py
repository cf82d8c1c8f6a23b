"""Copying all files of one folder or bucket to another one.

A name never stands for two contents, and a file appears under its name only when it is complete. So a copy that was
interrupted continues with the files that the target lacks. At the end, every file of the source, whenever it was
copied, is read from both and compared.

Files cannot be locked. A server that writes or deletes files meanwhile is noticed at the end, by the names.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hidream.errors import ConfigurationError, InvalidInput, NotFound
from hidream.outputs.object_store import Namespace, ObjectStore

TOGETHER = 4
"""Files that are copied or compared at a time."""
NAMED_MAX = 5
"""How many files an error names."""
EVER = datetime.max.replace(tzinfo=UTC)

OnFiles = Callable[[str, int, int], None]
"""Called with what is being done, how many files are done, and how many there are."""
Stores = Mapping[Namespace, ObjectStore]


@dataclass(slots=True)
class CopiedFiles:
    """How many files the source has, how many of them the target had already, and the bytes that were copied."""

    files: int = 0
    present: int = 0
    copied_bytes: int = 0


async def copy_files(source: Stores, target: Stores, on_files: OnFiles, *, dry_run: bool = False) -> CopiedFiles:
    """Copy the files of all namespaces that the target lacks, and compare all files; return what was done.

    `dry_run` only counts. Raises InvalidInput if the source has no files, or if files were added or deleted meanwhile;
    ConfigurationError if a copy differs from its original, or if the target cannot be written to; and
    ObjectStoreUnavailable.
    """
    listed = {namespace: await _names(store) for namespace, store in source.items()}
    if not any(listed.values()):
        raise InvalidInput(
            "FROM has no files of hidream; accepted: the folder or bucket of `[outputs] url`, by default HIDREAM_HOME"
        )
    total = CopiedFiles()
    for namespace, names in listed.items():
        await _Copy(namespace, source[namespace], target[namespace], names, on_files, total, dry_run).run()
    return total


@dataclass(slots=True)
class _Copy:
    """The copy of one namespace; `sizes` has the bytes of each file that is complete."""

    namespace: Namespace
    source: ObjectStore
    target: ObjectStore
    names: set[str]
    on_files: OnFiles
    total: CopiedFiles
    dry_run: bool
    sizes: dict[str, int] = field(default_factory=dict)
    different: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Copy and compare, or only look for what is to be copied."""
        if self.dry_run:
            return await self.each("counting", self.copy, self.names)
        await self.target.check()
        await self.each("copying", self.copy, self.names)
        await self.each("comparing", self.compare, list(self.sizes))
        if changed := self.names ^ await _names(self.source):
            raise InvalidInput(
                f"{len(changed)} files in {self.namespace} of FROM were added or deleted during the copy, such as "
                f"{_some(changed)}; accepted: to stop all servers and workers, and to copy again, which continues"
            )
        if self.different:
            raise ConfigurationError(
                f"{len(self.different)} files in {self.namespace} of TO differ from FROM: {_some(self.different)}; "
                "accepted: to delete them in TO, and to copy again"
            )

    async def copy(self, name: str) -> None:
        """Copy a file, unless the target has one of this name and size."""
        size_bytes = await _size(self.source, name)
        if size_bytes is None:  # an interrupted write has left it, or it was deleted, which the list of names tells
            return
        self.total.files += 1
        self.sizes[name] = size_bytes
        if await _size(self.target, name) == size_bytes:
            self.total.present += 1
            return
        if self.dry_run:
            return
        with contextlib.suppress(NotFound):
            _, chunks = await self.source.open(name)
            async with self.target.part() as part:
                async for chunk in chunks(0, size_bytes):
                    await part.write(chunk)
                await self.target.adopt(name, part)
            self.total.copied_bytes += size_bytes

    async def compare(self, name: str) -> None:
        """Compare the contents of a file in both stores."""
        if await _digest(self.source, name) != await _digest(self.target, name):
            self.different.append(name)

    async def each(self, doing: str, do: Callable[[str], Awaitable[None]], names: Collection[str]) -> None:
        """Call `do` for each name, TOGETHER at a time."""
        left, done = iter(names), itertools.count(1)

        async def work() -> None:
            for name in left:
                await do(name)
                self.on_files(f"{doing} {self.namespace}", next(done), len(names))

        workers = [asyncio.create_task(work()) for _ in range(TOGETHER)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _names(store: ObjectStore) -> set[str]:
    """List the files, and what interrupted writes have left."""
    return {name async for name in store.names(EVER)}


async def _size(store: ObjectStore, name: str) -> int | None:
    """The size of a file, or None if there is none."""
    try:
        return (await store.metadata(name)).size_bytes
    except NotFound:
        return None


async def _digest(store: ObjectStore, name: str) -> bytes | None:
    """The SHA-256 of a file, or None if there is none."""
    try:
        metadata, chunks = await store.open(name)
        digest = hashlib.sha256()
        async for chunk in chunks(0, metadata.size_bytes):
            digest.update(chunk)
    except NotFound:
        return None
    return digest.digest()


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:NAMED_MAX])
