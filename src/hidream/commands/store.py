"""`hidream store copy FROM TO`: all rows of a database, or all files of a folder or bucket, to another one."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

from hidream.errors import InvalidInput

if TYPE_CHECKING:
    from hidream.outputs.copy import CopiedFiles
    from hidream.settings.tables import Settings

ACCEPTED = (
    "accepted: two databases (postgresql+asyncpg://USER@HOST/DATABASE, sqlite+aiosqlite:///FILE or the path of a .db "
    "file), or two locations of files (the path of a folder, or s3://bucket/prefix)"
)


def copy(source: str, target: str, settings: Settings, *, dry_run: bool) -> int:
    """Copy between two databases, or between two locations of files, and print what was copied.

    Raises InvalidInput, ConfigurationError, DatabaseUnavailable and ObjectStoreUnavailable.
    """
    databases = [database_url(text) for text in (source, target)]
    if all(databases):
        _copy_database(*map(str, databases), dry_run=dry_run)
    elif any(databases):
        raise InvalidInput(f"one of FROM and TO is a database, and the other is not; {ACCEPTED}")
    else:
        _copy_files(source, target, settings, dry_run=dry_run)
    return 0


def database_url(text: str) -> str | None:
    """The URL of a database, or None if the text does not name one."""
    if re.match(r"(sqlite|postgres)[A-Za-z+]*:", text):
        return text
    is_path = not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text)
    if is_path and text and (text.endswith(".db") or Path(text).is_file()):
        return f"sqlite+aiosqlite:///{text}"
    return None


def _copy_database(source: str, target: str, *, dry_run: bool) -> None:
    from tqdm import tqdm

    from hidream.store.copy import copy_database

    with tqdm(unit="row", delay=0.2) as bar:

        def on_rows(table: str, done: int, total: int) -> None:
            bar.set_description(table, refresh=False)
            bar.total = total
            bar.update(done - bar.n)

        rows = asyncio.run(copy_database(source, target, on_rows, dry_run=dry_run))
    counts = ", ".join(f"{count} {table}" for table, count in rows.items() if count) or "no rows"
    print(f"would copy {counts}" if dry_run else f"copied and verified {counts}")


def _copy_files(source: str, target: str, settings: Settings, *, dry_run: bool) -> None:
    from tqdm import tqdm

    from hidream.configured_stores import open_store_at
    from hidream.outputs.copy import copy_files
    from hidream.outputs.object_store import Namespace

    if source.rstrip("/") == target.rstrip("/"):
        raise InvalidInput(f"FROM and TO are both {source!r:.100}; {ACCEPTED}")
    originals, copies = ({each: open_store_at(url, settings, each) for each in Namespace} for url in (source, target))
    with tqdm(unit="file", delay=0.2) as bar:

        def on_files(doing: str, done: int, total: int) -> None:
            bar.set_description(doing, refresh=False)
            bar.total = total
            bar.update(done - bar.n)

        copied = asyncio.run(copy_files(originals, copies, on_files, dry_run=dry_run))
    print(_told(copied, dry_run))


def _told(copied: CopiedFiles, dry_run: bool) -> str:
    if dry_run:
        return f"would copy {copied.files - copied.present} of {copied.files} files; TO has the others"
    return (
        f"copied {copied.files - copied.present} files ({copied.copied_bytes / 1e6:.1f} MB); TO had "
        f"{copied.present}; compared all {copied.files}"
    )
