"""Export of a key's data to a folder or a ZIP file: the tables as JSON lines, and the image files.

    README.txt  key.json  predictions.jsonl  deliveries.jsonl  idempotency_keys.jsonl  uploads.jsonl  acts.jsonl
    outputs/NAME  uploads/NAME  previews/PREDICTION.jpg
    missing.json    names of files that have a row but do not exist, if any

Rows are read page by page and files in pieces, so memory does not grow with the data, except for a ZIP file's directory
with less than a kilobyte for each file. The export contains no secret of the key.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from hidream.errors import InvalidInput, NotFound
from hidream.outputs.object_store import Namespace, ObjectStore
from hidream.store import audit_log, key_data
from hidream.store.database import Database
from hidream.store.key_data import KEY_TABLES, Row
from hidream.store.prediction import COLUMNS, Prediction
from hidream.types import Status

PART = ".part"
"""The suffix of the target's name until it is complete."""
README = """What a hidream server keeps of the API key {id}, as of {now}.

key.json               the key: name, scopes, limits; not its secrets
predictions.jsonl      each task: what was asked for (input), how it ended, when; times are ms since 1970 (UTC)
deliveries.jsonl       each webhook: where it goes, and how far it is
idempotency_keys.jsonl the Idempotency-Keys of the last day
uploads.jsonl          each file that was uploaded
acts.jsonl             what was done to the key, and by whom
outputs/, uploads/     the images
previews/              small images of tasks that are being generated
missing.json           images that are not there any more, if any
"""

Open = Callable[[str, bool], AbstractContextManager[IO[bytes]]]
"""Opens a new file of an archive by its name; the flag says whether it is worth compressing."""


@dataclass(slots=True)
class _Export:
    database: Database
    key_id: str
    open: Open
    written: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)

    async def table(self, name: str) -> None:
        with self.open(f"{name}.jsonl", True) as file:
            async for rows in key_data.pages(self.database, KEY_TABLES[name], self.key_id):
                for row in rows:
                    file.write(_json(row) + b"\n")
                self.written[name] += len(rows)

    async def previews(self) -> None:
        async for rows in key_data.pages(self.database, KEY_TABLES["previews"], self.key_id):
            for row in rows:
                self.whole(f"previews/{row['prediction_id']}.jpg", row["picture"])

    async def outputs(self, store: ObjectStore) -> None:
        async for rows in key_data.pages(self.database, KEY_TABLES["predictions"], self.key_id):
            for row in rows:
                task = Prediction.of_row([row[column.name] for column in COLUMNS])
                for name in task.output_names if task.output_name else ():
                    await self.file(store, f"{Namespace.OUTPUTS}/{name}", is_sure=task.status == Status.COMPLETED)

    async def uploads(self, store: ObjectStore) -> None:
        async for rows in key_data.pages(self.database, KEY_TABLES["uploads"], self.key_id):
            for row in rows:
                await self.file(store, f"{Namespace.UPLOADS}/{row['name']}", is_sure=row["stored"])

    async def file(self, store: ObjectStore, path: str, *, is_sure: bool) -> None:
        """Copy a file. If it does not exist although `is_sure`, add it to the missing ones."""
        try:
            metadata, chunks = await store.open(path.partition("/")[2])
        except NotFound:
            self.missing += [path] if is_sure else []
            return
        with self.open(path, False) as file:
            async for chunk in chunks(0, metadata.size_bytes):
                file.write(chunk)
        self.written["files"] += 1

    def whole(self, name: str, data: bytes) -> None:
        with self.open(name, True) as file:
            file.write(data)


async def export(
    database: Database, outputs: ObjectStore, uploads: ObjectStore, key_id: str, out: Path, actor: str
) -> Counter[str]:
    """Write a key's data to `out`, which must not exist: to a ZIP file if its name ends in .zip, else to a folder.

    The audit log records that an export was started, even if it does not finish.

    Returns how much was written: rows by table, `files`, and `missing`. Raises NotFound if there is no such key,
    InvalidInput if `out` exists, DatabaseUnavailable and ObjectStoreUnavailable; after an error, nothing is left of it.
    """
    key = await key_data.key_row(database, key_id)
    with _archive(out) as opened:
        await audit_log.append(database, actor, "keys export", key_id)
        job = _Export(database, key_id, opened)
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(database.now_ms() / 1000))
        job.whole("README.txt", README.format(id=key_id, now=now).encode())
        job.whole("key.json", _json(key))
        for name in KEY_TABLES:
            if name != "previews":
                await job.table(name)
        await job.previews()
        await job.outputs(outputs)
        await job.uploads(uploads)
        if job.missing:
            job.whole("missing.json", _json({"missing": job.missing}))
    return job.written + Counter(missing=len(job.missing))


@contextmanager
def _archive(out: Path) -> Iterator[Open]:
    """Create a folder or a ZIP file that only its owner may read; it gets its final name when it is complete."""
    if out.exists():
        raise InvalidInput(f"--out is {str(out)!r:.100}, which is there already; accepted: a new file or folder")
    part = out.with_name(out.name + PART)
    _remove(part)
    try:
        yield from _zip(part) if out.suffix.lower() == ".zip" else _folder(part)
        part.rename(out)
    except BaseException:
        _remove(part)
        raise


def _zip(path: Path) -> Iterator[Open]:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w") as archive:

        def opened(name: str, is_worth: bool) -> IO[bytes]:
            entry = zipfile.ZipInfo(name, time.gmtime()[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED if is_worth else zipfile.ZIP_STORED
            return archive.open(entry, "w", force_zip64=True)

        yield opened


def _folder(path: Path) -> Iterator[Open]:
    path.mkdir(mode=0o700)

    def opened(name: str, _is_worth: bool) -> IO[bytes]:
        (path / name).parent.mkdir(exist_ok=True)
        return (path / name).open("xb")

    yield opened


def _remove(path: Path) -> None:
    """Remove what an aborted export has left."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _json(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
