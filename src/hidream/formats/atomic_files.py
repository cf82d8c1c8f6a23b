"""Atomic writing of files and folders: written beside the target, and moved to it after success."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from hidream.errors import ConfigurationError

PART = ".part"
WEIGHTS = (".safetensors", ".safetensors.index.json", ".gguf")


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a path to write a file or folder to; it replaces `target` at the end, or is deleted after an error.

    It is in a folder of its own beside the target. Raises ConfigurationError if the disk is full or not writable.
    """
    workshop = target.with_name(target.name + PART)
    made = workshop / target.name
    shutil.rmtree(workshop, ignore_errors=True)
    try:
        workshop.mkdir(parents=True)
        yield made
        if target.is_dir():
            target.rename(workshop / "before")
        made.replace(target)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigurationError(f"{target} cannot be written: {reason}; nothing was left there") from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def atomic_copy(source: Path, target: Path) -> None:
    """Copy a small file to a folder, which is created if necessary. Raises ConfigurationError if that fails."""
    with atomic_write(target) as path:
        shutil.copyfile(source, path)


def check_target(target: Path, force: bool, is_folder: bool, renewed: Collection[str] = ()) -> None:
    """Raise ConfigurationError when something is in the way of a new file or folder that may not be replaced.

    With `force` may be: a file, or a folder with config.json and beside it only weights and files named in `renewed`.
    """
    leftover = target.with_name(target.name + PART)
    if leftover.exists() and not force:
        raise ConfigurationError(
            f"{leftover} exists: another process is writing {target.name}, or was killed while doing so; "
            "accepted: wait for it, or --force to start again"
        )
    if target.exists() and target.is_dir() is not is_folder:
        what, wanted = ("a folder", "the path of a file") if target.is_dir() else ("a file", "the path of a folder")
        raise ConfigurationError(f"{target} is {what}; accepted: {wanted}")
    if not target.exists() or (is_folder and not any(target.iterdir())):
        return
    if not force:
        raise ConfigurationError(f"{target} exists; accepted: a new path, or --force to replace it")
    others = sorted(path.name for path in target.iterdir() if not _is_replaceable(path, renewed)) if is_folder else []
    if others or (is_folder and not (target / "config.json").is_file()):
        shown = f"more than one part ({', '.join(others[:3])})" if others else "weights, but no config.json of one part"
        raise ConfigurationError(f"{target} holds {shown}, and --force would delete it all; accepted: a new path")


def _is_replaceable(path: Path, renewed: Collection[str]) -> bool:
    return path.is_file() and (path.name.endswith(WEIGHTS) or path.name in renewed)
