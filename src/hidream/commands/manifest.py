"""A folder of generated images with its manifest, `manifest.jsonl`: what is there, and how it was made.

The first line says the format and the folder's random id; each further line describes one image. An image is there if
the manifest has its line and the file has the line's sha256. Whatever moment a run is killed at, a later one completes
the folder, because of the order of `add`: the whole file under a temporary name, then the line, then the final name.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hidream.commands import journal
from hidream.errors import InvalidInput

NAME = "manifest.jsonl"
KIND = "hidream_manifest"
_PART = ".part"


class Manifest:
    """The images of a folder, by key; `add` appends one."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, or create it. Raises InvalidInput if it is a file or of another kind."""
        self.folder, self.path = folder, folder / NAME
        journal.make_folder(folder)
        self.entries: dict[str, dict[str, Any]] = {}
        self.id = ""
        self._read()
        if not self.id:
            self.id = uuid.uuid4().hex
            journal.append(self.path, {KIND: journal.FORMAT, "id": self.id})

    def _read(self) -> None:
        """Read the lines. Raises InvalidInput on a file of another kind."""
        try:
            head, *entries = journal.read(self.path, KIND, _check) or [{"id": ""}]
        except FileNotFoundError:
            return
        except journal.OfAnotherKindError as error:
            raise InvalidInput(
                f"{self.path} {error} is not one of a manifest of hidream; accepted: another folder"
            ) from error
        self.id, self.entries = head["id"], {entry["key"]: entry for entry in entries}

    def find(self, key: str) -> dict[str, Any] | None:
        """The entry of an image that is there, whole; a file that only lacks its final name gets it."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        file, part = self.folder / entry["file"], self.folder / f"{entry['file']}{_PART}"
        if not file.exists() and _sha256(part) == entry["sha256"]:
            part.replace(file)
        return entry if _sha256(file) == entry["sha256"] else None

    def add(self, key: str, name: str, data: bytes, about: Mapping[str, Any]) -> dict[str, Any]:
        """Write a file and its line, durably; return the entry."""
        name = self._free(name, key)
        entry = {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "key": key, **about}
        part = self.folder / f"{name}{_PART}"
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        journal.append(self.path, entry)
        part.replace(self.folder / name)
        self.entries[key] = entry
        return entry

    def _free(self, name: str, key: str) -> str:
        """A name that no other image of the folder has."""
        taken = {entry["file"] for other, entry in self.entries.items() if other != key}
        own = self.entries.get(key, {}).get("file")
        stem, dot, suffix = name.rpartition(".")
        names = (name if i == 1 else f"{stem}-{i}{dot}{suffix}" for i in range(1, 10**6))
        return next(each for each in names if each == own or (each not in taken and not (self.folder / each).exists()))


def _check(entry: Mapping[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError unless an entry is the head, or describes a file of its folder."""
    if KIND in entry:
        found = [entry["id"]]
    else:
        found = [entry["file"], entry["sha256"], entry["key"]]
        dict(entry["parameters"])
        if Path(entry["file"]).name != entry["file"]:
            raise ValueError("the file is in another folder")
    if not all(isinstance(text, str) for text in found):
        raise TypeError("a text is none")


def entry_of(file: Path) -> dict[str, Any] | None:
    """The entry of an image file in the manifest of its folder; None if there is none that fits its content."""
    try:
        entries = journal.read(file.parent / NAME, KIND, _check)[1:]
        digest = _sha256(file)
        return next((entry for entry in reversed(entries) if entry["sha256"] == digest), None)
    except (OSError, ValueError):
        return None


def _sha256(path: Path) -> str | None:
    """The digest of a file; None if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
