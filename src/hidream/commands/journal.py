"""Files of JSON lines that only grow, such as the manifest of a folder: read after any crash, appended durably.

The first line says what the file is. A line that a crash has torn is cut off; a file of another kind is not touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hidream.errors import InvalidInput

FORMAT = 1
LOCK = ".hidream.lock"


class OfAnotherKindError(ValueError):
    """A line is not one of such a file."""

    def __init__(self, line: int) -> None:
        super().__init__(f"line {line}")
        self.line = line


def read(path: Path, kind: str, check: Callable[[dict[str, Any]], object]) -> list[dict[str, Any]]:
    """Read the lines, each of which `check` accepts; the first one has `kind` with the format.

    Empty if a crash has torn the first line. Raises OfAnotherKindError, before anything is cut off, and OSError.
    """
    data = path.read_bytes()
    head, whole = f'{{"{kind}"'.encode(), data[: data.rfind(b"\n") + 1]
    if data[: len(head)] != head[: len(data)]:
        raise OfAnotherKindError(1)
    found: list[dict[str, Any]] = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            check(entry)
            if entry.get(kind) != (None if found else FORMAT):
                raise KeyError(kind)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OfAnotherKindError(number) from error
        found.append(entry)
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return found


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """Write a line, and wait until the disk has it."""
    with path.open("ab") as file:
        file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Create the folder of `--out`. Raises InvalidInput if it is a file."""
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(f"--out is {str(folder)!r:.100}, which is a file; accepted: a folder")
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Create a folder, and keep other processes from filling it meanwhile. Raises InvalidInput if one does so.

    Where a folder has no locks, or may not be written, there is none.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InvalidInput(
            f"--out is {str(folder)!r:.100}, which another process is filling; accepted: another folder, or later"
        ) from None
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()
