"""The Hub's cache on disk: which repositories and commits it has, and what a snapshot lacks. Reads nothing else.

`models--OWNER--NAME/` has the files by their digest in `blobs/`, the commit of each branch in `refs/`, and for each
commit links to the blobs in `snapshots/COMMIT/` (huggingface.co/docs/huggingface_hub/guides/manage-cache). A file's
digest is its SHA-256, or for small files, which Git has itself, its SHA-1 as a Git blob.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from hidream.errors import CheckpointError
from hidream.formats.json_object import read_object
from hidream.hub.catalogue import WEIGHTS, WHOLE
from hidream.hub.names import ModelId
from hidream.parts import EVERYTHING, PARTS

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
PREFIX = "models--"


def cache_folder() -> Path:
    """The folder of the cache, from HF_HUB_CACHE or HF_HOME; it need not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def folder_of(repository: str) -> Path:
    """The folder of one repository in the cache; it need not exist."""
    return cache_folder() / f"{PREFIX}{repository.replace('/', '--')}"


def repositories() -> list[str]:
    """The ids of all models in the cache, also of unfinished ones."""
    names = (path.name.removeprefix(PREFIX) for path in cache_folder().glob(f"{PREFIX}*--*"))
    return sorted(name.replace("--", "/", 1) for name in names)


def commit_of(model: ModelId) -> str | None:
    """The commit that the cache has for a revision; None if it does not know the revision."""
    if COMMIT.fullmatch(model.revision):
        return model.revision
    try:
        return (folder_of(model.repository) / "refs" / model.revision).read_text().strip()
    except (OSError, ValueError):
        return None


def snapshot_of(model: ModelId) -> Path | None:
    """The folder of a revision's files; None without one."""
    commit = commit_of(model)
    if commit is None or not COMMIT.fullmatch(commit):
        return None
    folder = folder_of(model.repository) / "snapshots" / commit
    return folder if folder.is_dir() else None


def snapshots_of(repository: str) -> list[str]:
    """The commits of a repository that the cache has files of."""
    folder = folder_of(repository) / "snapshots"
    return sorted(path.name for path in folder.glob("*") if COMMIT.fullmatch(path.name))


def missing(snapshot: Path, parts: Iterable[str], *, complete: bool) -> list[str]:
    """The files and folders that a snapshot lacks of some parts; a folder's name ends in a slash.

    With `complete`, every one of the parts must be there, otherwise only files of those that are.
    """
    found: list[str] = []
    for name in parts:
        folder = snapshot / name
        if name == WHOLE:
            found += _missing_of_whole(snapshot, complete=complete)
        elif folder.is_dir():
            lacking = _missing_weights(folder) if name in PARTS else _missing_tokenizer(folder)
            found += [f"{name}/{each}" for each in lacking]
        elif complete:
            found.append(f"{name}/")
    return found


def unfinished(repository: str) -> int:
    """The bytes of files that have arrived only in part."""
    return sum(size_of(path) for path in (folder_of(repository) / "blobs").glob("*.incomplete"))


def size_of(file: Path) -> int:
    """The bytes of a file; 0 without it."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def files_of(snapshot: Path) -> dict[str, Path]:
    """The files of a snapshot by their path in the repository, without those whose blob is gone."""
    return {path.relative_to(snapshot).as_posix(): path for path in sorted(snapshot.rglob("*")) if path.is_file()}


def blob_name(file: Path) -> str:
    """The digest of a file's content by the name of its blob; empty where the cache has no links."""
    name = file.resolve().name
    return name if file.is_symlink() and DIGEST.fullmatch(name) else ""


def looks_whole(snapshot: Path) -> bool:
    """Whether a repository has its files beside each other, as Llama's does, rather than in folders of parts."""
    return not any((snapshot / name).is_dir() for name in EVERYTHING)


def _missing_of_whole(snapshot: Path, *, complete: bool) -> list[str]:
    if not complete:
        links = (path for path in sorted(snapshot.rglob("*")) if path.is_symlink() and not path.exists())
        return [path.relative_to(snapshot).as_posix() for path in links]
    return _missing_weights(snapshot) + _missing_tokenizer(snapshot)


def _missing_weights(folder: Path) -> list[str]:
    """What a folder lacks: its configuration, the shards that its index names, or any weights."""
    found = [] if (folder / "config.json").is_file() else ["config.json"]
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        shards = _shards(indices[0])
        return found + [name for name in shards if not (folder / name).is_file()] + [indices[0].name] * (not shards)
    weights = [path for path in folder.glob("*") if path.suffix in WEIGHTS]
    return found + [path.name for path in weights if not path.is_file()] + ["*.safetensors"] * (not weights)


def _shards(index: Path) -> list[str]:
    """The files that an index names; none if it cannot be read."""
    try:
        named = read_object(index, "an index as published").get("weight_map")
    except CheckpointError:
        return []
    names = {Path(str(name)).name for name in named.values()} if isinstance(named, dict) else set()
    return sorted(names)


def _missing_tokenizer(folder: Path) -> list[str]:
    vocabularies = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
    there = any((folder / name).is_file() for name in vocabularies)
    dangling = [path.name for path in sorted(folder.glob("tokenizer*")) if path.is_symlink() and not path.exists()]
    return dangling if there else dangling or [vocabularies[0]]
