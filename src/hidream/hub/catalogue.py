"""The models that hidream knows by a short name: their repositories, what is needed of each, sizes and licences.

Sizes are those that the repositories state (docs/MODELS.md). They are shown while the Hub is not asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from hidream.parts import EVERYTHING, LLAMA, PARTS
from hidream.types import Variant

WHOLE = "."
"""The part of a repository that has no folders for parts, such as Llama's: its own files."""
SUFFIXES = (".json", ".safetensors", ".txt", ".model")
"""Files of weights, configurations and tokenizers; others (pickles, images, originals) are not read."""
WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True, slots=True)
class Entry:
    """A model with a short name."""

    name: str
    repository: str
    title: str
    licence: str
    size_gb: float  # of the files that are needed
    parts: tuple[str, ...]  # that the repository should have
    variant: Variant | None = None
    copies: tuple[str, ...] = ()  # other repositories with the same weights
    free_copy: str = ""  # the one of them that is not gated, if the repository is


def _official(variant: Variant) -> Entry:
    """One of the official repositories, which have everything except Llama; the encoders are the same in all three."""
    title = f"HiDream-I1-{variant.title()}"
    return Entry(
        name=str(variant),
        repository=f"HiDream-ai/{title}",
        title=title,
        licence="MIT",
        size_gb=47.2,
        parts=tuple(part for part in EVERYTHING if part not in (LLAMA.name, LLAMA.tokenizer)),
        variant=variant,
    )


LLAMA_ENTRY = Entry(
    name="llama",
    repository="meta-llama/Meta-Llama-3.1-8B-Instruct",
    title="Llama-3.1-8B-Instruct",
    licence="the Llama 3.1 Community License",
    size_gb=16.1,
    parts=(WHOLE,),
    copies=("meta-llama/Llama-3.1-8B-Instruct", "unsloth/Meta-Llama-3.1-8B-Instruct"),
    free_copy="unsloth/Meta-Llama-3.1-8B-Instruct",
)
CATALOGUE = {entry.name: entry for entry in (*map(_official, Variant), LLAMA_ENTRY)}
"""All models with a short name, by it."""


def entry_of(repository: str) -> Entry | None:
    """The entry of a repository, also if it has a copy of the entry's weights."""
    return next((each for each in CATALOGUE.values() if repository in (each.repository, *each.copies)), None)


def name_of(repository: str) -> str:
    """What `hidream models` calls a repository: its short name, or else its id."""
    return next((each.name for each in CATALOGUE.values() if repository == each.repository), repository)


def needed(paths: Iterable[str], include: Iterable[str] = ()) -> list[str]:
    """The files of a repository that hidream reads, out of all its `paths`; `include` has patterns that decide instead.

    Empty if the layout does not tell: then a repository has several files for one part, of which the user chooses.
    """
    paths, include = sorted(paths), tuple(include)
    if include:
        return [path for path in paths if any(fnmatchcase(path, pattern) for pattern in include)]
    readable = [path for path in paths if path.endswith(SUFFIXES)]
    if any(path.startswith("transformer/") for path in paths):
        folders = (*EVERYTHING, "scheduler")
        return [path for path in readable if path == "model_index.json" or _folder(path) in folders]
    if "config.json" in paths and any(path.endswith(".safetensors") and "/" not in path for path in paths):
        return [path for path in readable if "/" not in path]
    return []


def parts_of(setting: str) -> tuple[str, ...]:
    """The parts that a key of `[models]` names; all of them for a checkpoint."""
    if setting == LLAMA.setting:
        return (WHOLE, LLAMA.name, LLAMA.tokenizer)
    if setting == "tokenizers":
        return tuple(part.tokenizer for part in PARTS.values() if part.tokenizer)
    named = tuple(part.name for part in PARTS.values() if part.setting == setting)
    return (WHOLE, *(named or EVERYTHING))


def _folder(path: str) -> str:
    return str(PurePosixPath(path).parent)
