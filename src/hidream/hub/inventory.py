"""What is in the cache: the state of each model, the digests of its files compared with their content, and removal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hidream.errors import CheckpointError, InvalidInput
from hidream.hub import cache, locate, names
from hidream.hub.catalogue import CATALOGUE, LLAMA_ENTRY, entry_of, name_of
from hidream.hub.download import CHUNK_BYTES, new_digest
from hidream.hub.names import ModelId


@dataclass(frozen=True, slots=True)
class Row:
    """A model that the cache or the settings name."""

    name: str
    model: str  # an id of the Hub, or a path
    state: str  # "complete", "incomplete", "absent"; of a path: "folder", "file", "absent"
    size_bytes: int  # of its files here
    commit: str
    folder: Path | None
    used_by: tuple[str, ...]  # the keys of the settings that name it
    note: str = ""  # what is wrong, and the cure


def rows(named: Mapping[str, Path]) -> list[Row]:
    """The known models, others in the cache that belong to HiDream, and what `[models]` names (by key)."""
    ids = {key: model for key, path in named.items() if (model := names.as_id(path))}
    models = [ModelId(entry.repository) for entry in CATALOGUE.values()]
    models += [ModelId(repository) for repository in cache.repositories() if _is_ours(repository)]
    models += ids.values()
    users = {model: tuple(f"[models] {key}" for key, each in ids.items() if each == model) for model in models}
    return [_row(model, used_by) for model, used_by in users.items()] + [
        _row_of_path(key, path) for key, path in named.items() if key not in ids
    ]


def row_of(model: ModelId) -> Row:
    """The state of one model."""
    return _row(model, ())


@dataclass(frozen=True, slots=True)
class Checked:
    """A file of a snapshot, whose content was compared with its digest."""

    path: str
    expected: str  # empty where the cache does not know it: on a system without links
    found: str
    size_bytes: int
    blob: Path

    @property
    def good(self) -> bool | None:
        """Whether the content is right; None where that is not known."""
        return self.expected == self.found if self.expected else None


def verify(model: ModelId) -> Iterator[Checked]:
    """Read every file of a snapshot. Raises InvalidInput if the cache has none."""
    folder = cache.snapshot_of(model)
    if folder is None:
        raise InvalidInput(f"the Hub's cache has no {model}; accepted: one that `hidream models list` shows")
    for path, file in cache.files_of(folder).items():
        expected, size = cache.blob_name(file), file.stat().st_size
        found = _content_digest(file, expected, size) if expected else ""
        yield Checked(path, expected, found, size, file.resolve())


@dataclass(frozen=True, slots=True)
class Removal:
    """What removing a model would delete."""

    model: ModelId
    folder: Path  # of the repository
    size_bytes: int


def removal(model: ModelId) -> Removal:
    """Find what to remove: a repository with all its revisions. Raises InvalidInput if the cache does not have it."""
    folder = cache.folder_of(model.repository)
    if not folder.is_dir():
        raise InvalidInput(f"the Hub's cache has no {model.repository}; accepted: one that `hidream models list` shows")
    if model.revision != names.MAIN:
        raise InvalidInput(
            f"{model} is one revision, and a repository is removed as a whole; accepted: {name_of(model.repository)}"
        )
    return Removal(model, folder, sum(map(cache.size_of, (folder / "blobs").glob("*"))))


def remove(removal: Removal) -> None:
    """Delete a repository from the cache. Raises OSError."""
    shutil.rmtree(removal.folder)


def _row(model: ModelId, used_by: tuple[str, ...]) -> Row:
    entry, folder = entry_of(model.repository), cache.snapshot_of(model)
    name = name_of(model.repository) if model.revision == names.MAIN else str(model)
    size = cache.unfinished(model.repository)
    if folder is not None:
        size += sum(cache.size_of(blob) for blob in {file.resolve() for file in cache.files_of(folder).values()})
    try:
        locate.snapshot(model)
    except CheckpointError as error:
        absent = folder is None and not size
        note = f"{entry.size_gb:.1f} GB" if absent and entry else error.message
        return Row(name, str(model), "absent" if absent else "incomplete", size, "", folder, used_by, note)
    assert folder is not None, "what is complete has a folder"
    note = _llama_note(folder) if entry is not None and entry.variant else ""
    return Row(name, str(model), "complete", size, folder.name, folder, used_by, note)


def _row_of_path(key: str, path: Path) -> Row:
    there = path.exists()
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    size = sum(map(cache.size_of, files))
    note = _llama_note(path) if there else "there is no such file or folder"
    kind = "absent" if not there else "folder" if path.is_dir() else "file"
    return Row(key, str(path), kind, size, "", path, (f"[models] {key}",), note)


def _llama_note(folder: Path) -> str:
    if not locate.lacks_llama(folder) or locate.cached_llama() is not None:
        return ""
    return f"needs Llama: `hidream models pull {LLAMA_ENTRY.name}`, or `[models] llama`"


def _is_ours(repository: str) -> bool:
    """Whether a repository in the cache, which other programs fill too, belongs to HiDream by its name."""
    entry = entry_of(repository)
    return "hidream" in repository.lower() or (entry is not None and repository in entry.copies)


def _content_digest(file: Path, expected: str, size_bytes: int) -> str:
    digest = new_digest(expected, size_bytes)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
