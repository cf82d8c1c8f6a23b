"""`hidream store copy FROM TO`: all rows of a database, or all files of a folder or bucket, to another one."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hidream.commands import progress
from hidream.commands.grammar import Command, Entry, Flag, Given, Group
from hidream.commands.printing import json_line
from hidream.commands.values import TEXT
from hidream.errors import InvalidInput
from hidream.settings.tables import Settings

if TYPE_CHECKING:
    from hidream.outputs.copy import CopiedFiles

ACCEPTED = (
    "accepted: two databases (postgresql+asyncpg://USER@HOST/DATABASE, sqlite+aiosqlite:///FILE or the path of a .db "
    "file), or two locations of files (the path of a folder, or s3://bucket/prefix)"
)


def _copy(given: Given, config: Settings) -> int:
    copied = copied_between(given.source, given.target, config, dry_run=given.dry_run)
    if given.json:
        json_line(copied.as_json())
    else:
        click.echo(copied.told())
    return 0


def copied_between(source: str, target: str, settings: Settings, *, dry_run: bool) -> Rows | Files:
    """Copy between two databases, or between two locations of files, and return what was copied.

    Raises InvalidInput, ConfigurationError, DatabaseUnavailable and ObjectStoreUnavailable.
    """
    databases = [database_url(text) for text in (source, target)]
    if all(databases):
        return _copy_database(*map(str, databases), dry_run=dry_run)
    if any(databases):
        raise InvalidInput(f"one of FROM and TO is a database, and the other is not; {ACCEPTED}")
    return _copy_files(source, target, settings, dry_run=dry_run)


def database_url(text: str) -> str | None:
    """The URL of a database, or None if the text does not name one."""
    if re.match(r"(sqlite|postgres)[A-Za-z+]*:", text):
        return text
    is_path = not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text)
    if is_path and text and (text.endswith(".db") or Path(text).is_file()):
        return f"sqlite+aiosqlite:///{text}"
    return None


@dataclass(frozen=True, slots=True)
class Rows:
    """What was copied from one database to another: rows, by table."""

    rows: Mapping[str, int]
    dry_run: bool

    def as_json(self) -> dict[str, object]:
        """Return an object for --json."""
        return {"rows": dict(self.rows), "dry_run": self.dry_run}

    def told(self) -> str:
        """Say it in one line."""
        counts = ", ".join(f"{count} {table}" for table, count in self.rows.items() if count) or "no rows"
        return f"would copy {counts}" if self.dry_run else f"copied and verified {counts}"


@dataclass(frozen=True, slots=True)
class Files:
    """What was copied from one location of files to another."""

    copied: CopiedFiles
    dry_run: bool

    def as_json(self) -> dict[str, object]:
        """Return an object for --json."""
        return {**dataclasses.asdict(self.copied), "dry_run": self.dry_run}

    def told(self) -> str:
        """Say it in one line."""
        new = self.copied.files - self.copied.present
        if self.dry_run:
            return f"would copy {new} of {self.copied.files} files; TO has the others"
        return (
            f"copied {new} files ({self.copied.copied_bytes / 1e6:.1f} MB); TO had {self.copied.present}; compared all "
            f"{self.copied.files}"
        )


def _copy_database(source: str, target: str, *, dry_run: bool) -> Rows:
    from hidream.store.copy import copy_database

    with progress.bar("rows", "rows") as bar:

        def on_rows(table: str, done: int, total: int) -> None:
            bar.show(table, done=done, total=total)

        return Rows(asyncio.run(copy_database(source, target, on_rows, dry_run=dry_run)), dry_run)


def _copy_files(source: str, target: str, settings: Settings, *, dry_run: bool) -> Files:
    from hidream.configured_stores import open_store_at
    from hidream.outputs.copy import copy_files
    from hidream.outputs.object_store import Namespace

    if source.rstrip("/") == target.rstrip("/"):
        raise InvalidInput(f"FROM and TO are both {source!r:.100}; {ACCEPTED}")
    originals, copies = ({each: open_store_at(url, settings, each) for each in Namespace} for url in (source, target))
    with progress.bar("files", "files") as bar:

        def on_files(doing: str, done: int, total: int) -> None:
            bar.show(doing, done=done, total=total)

        return Files(asyncio.run(copy_files(originals, copies, on_files, dry_run=dry_run)), dry_run)


COPY = Command(
    _copy,
    [
        click.Argument(["source"], type=TEXT, metavar="FROM"),
        click.Argument(["target"], type=TEXT, metavar="TO"),
        Flag(["--dry-run"], is_flag=True, help="only show what would be copied"),
    ],
    details="FROM is the URL of a database, or a folder or s3:// URL of files. TO is of the same kind; a database must "
    "be empty or new. No server may use either database meanwhile.",
    extras="server",
    examples=[
        "hidream store copy ~/.local/share/hidream/hidream.db postgresql+asyncpg://hidream@db/hidream --dry-run",
        "hidream store copy ~/.local/share/hidream s3://bucket/hidream",
    ],
)

STORE = Group({"Commands": {"copy": Entry(__name__, "COPY", "copy a database or all files, and verify the copy")}})
