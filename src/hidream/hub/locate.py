"""Start here: from what a user names as a model, a path or an id of the Hub, to the folder of its files.

Nothing here uses a network, so a server starts the same with and without one: what is not in the cache is an error that
says what to type. What a user names is what is used. The one thing that is found without being named is Llama, for
folders such as the official ones, which were published without it; `parts` logs it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from hidream.errors import CheckpointError
from hidream.hub import cache, names
from hidream.hub.catalogue import LLAMA_ENTRY, Entry, entry_of, name_of, parts_of
from hidream.hub.names import MAIN, ModelId
from hidream.parts import LLAMA

FEW = 3
logger = logging.getLogger(__name__)


def locate(model: str, *, revision: str | None = None) -> Path:
    """The folder of a model on this machine: a path as it is, or the snapshot of an id such as owner/name in the cache.

    Raises CheckpointError if the cache does not have all files that hidream reads, with the command that downloads
    them; InvalidInput on a revision that cannot be one.
    """
    found = names.as_id(model)
    if found is None:
        return Path(model)
    if revision is not None:
        found = ModelId(found.repository, names.revision(revision))
    return snapshot(found)


def parts(named: Mapping[str, Path]) -> dict[str, Path]:
    """The paths of a model's parts, by the fields of `Checkpoint`, with the ids of the Hub among them located.

    The checkpoint's own repository need not have the parts that are named beside it. Raises as `locate` does.
    """
    ids = {name: names.as_id(path) for name, path in named.items()}
    elsewhere = {part for name in named if name != "folder" for part in parts_of(name)}
    found = {}
    for name, path in named.items():
        model, wanted = ids[name], set(parts_of(name))
        if name == "folder":
            wanted -= elsewhere - {"."}
        found[name] = path if model is None else snapshot(model, wanted)
    llama = _llama_for(found)
    return found if llama is None else found | {LLAMA.setting: llama}


def snapshot(model: ModelId, wanted: Collection[str] | None = None) -> Path:
    """The snapshot of an id that has all `wanted` parts, by default all that the repository should have.

    Raises CheckpointError, with what is missing.
    """
    folder = cache.snapshot_of(model)
    if folder is None:
        raise CheckpointError(_not_there(model))
    entry = entry_of(model.repository)
    lacking = lacking_parts(folder, entry, wanted)
    if lacking:
        shown = ", ".join(lacking[:FEW]) + f" and {len(lacking) - FEW} more" * (len(lacking) > FEW)
        raise CheckpointError(f"{model} is not complete in the Hub's cache: {folder} lacks {shown}. {_cure(model)}")
    return folder


def lacking_parts(folder: Path, entry: Entry | None, wanted: Collection[str] | None = None) -> list[str]:
    """What a snapshot lacks, as `cache.missing` names it."""
    if entry is None:
        each = parts_of("folder") if wanted is None else wanted
        return cache.missing(folder, sorted(each), complete=False)
    return cache.missing(folder, [part for part in entry.parts if wanted is None or part in wanted], complete=True)


def cached_llama() -> Path | None:
    """The folder of Llama in the cache: of its own repository, or else of one with the same weights."""
    for repository in (LLAMA_ENTRY.repository, *LLAMA_ENTRY.copies):
        folder = cache.snapshot_of(ModelId(repository))
        if folder is not None and not lacking_parts(folder, LLAMA_ENTRY):
            return folder
    return None


def lacks_llama(folder: Path) -> bool:
    """Whether a folder has the official layout, which is without Llama."""
    inside = ("model_index.json", LLAMA.name, LLAMA.tokenizer)
    return [(folder / name).exists() for name in inside] == [True, False, False]


def _llama_for(found: Mapping[str, Path]) -> Path | None:
    """The cached Llama, for a checkpoint in the official layout without a Llama of its own; None elsewhere."""
    if LLAMA.setting in found or "folder" not in found or not lacks_llama(found["folder"]):
        return None
    llama = cached_llama()
    if llama is not None:
        logger.info("llama_in_the_cache checkpoint=%s llama=%s", found["folder"], llama)
    return llama


def _not_there(model: ModelId) -> str:
    """Say that the cache has nothing of a revision, and what it has instead."""
    where = f"{model} is neither a file or folder here nor in the Hub's cache ({cache.cache_folder()})"
    others = cache.snapshots_of(model.repository)
    if not others:
        return f"{where}. {_cure(model)}"
    there = ", ".join(f"{model.repository}@{commit}" for commit in others[:FEW])
    return f"{where}, which has other revisions of it ({there}). {_cure(model)}"


def _cure(model: ModelId) -> str:
    """Say how to download a model, and how large it is if that is known."""
    entry = entry_of(model.repository)
    revision = "" if model.revision == MAIN else f"@{model.revision}"
    command = f"`hidream models pull {name_of(model.repository)}{revision}` downloads it"
    if entry is None:
        return f"{command}, after it has shown how large it is"
    return f"{command} ({entry.size_gb:.1f} GB in all), and goes on where an earlier download was interrupted"
