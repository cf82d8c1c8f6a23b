"""The folder of the LoRAs that requests may name: a file is read when it is first seen, and again after each change.

A name is looked up when a request is prepared. That costs a `stat` if the file has not changed; otherwise the file is
read on the model thread. A LoRA that cannot be used fails only the requests that name it. A running request keeps the
tensors that it began with. Besides these, one version of each recently used file is cached.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hidream.errors import CheckpointError, ConfigurationError, InvalidInput
from hidream.formats.lora_file import read_lora
from hidream.model.network.lora import Layers, Lora, match, wants

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
CACHE_BYTES = 2**31
"""Of the LoRAs that are kept in host memory; the published model's have 0.1 to 1 GB each. The latest is always kept."""
NAMES_SHOWN = 50


State = tuple[int, ...] | str
"""What differs when a file was replaced, written to or given other permissions; or why there is no file."""


@dataclass(frozen=True, slots=True)
class _CacheEntry:
    """What came of reading a file."""

    state: State
    lora: Lora | None
    reason: str = ""  # why it cannot be used
    nbytes: int = 0


class LoraFolder:
    """The LoRAs of a folder, for a model whose `layers` they change; without a folder there are none.

    All that are there are read at once, so that the log says early what is wrong with them; with `lazy`, for a folder
    that has those of other models, too, each when it is first named. For one thread. Raises ConfigurationError when the
    folder cannot be read.
    """

    def __init__(self, folder: Path | None = None, layers: Layers | None = None, *, lazy: bool = False) -> None:
        self._folder, self._layers = folder, layers or {}
        self._cached: dict[str, _CacheEntry] = {}  # the latest used is the last
        for name in [] if lazy else self._listed():
            with suppress(CheckpointError):  # the log has it
                self.read(name)

    @property
    def folder(self) -> Path | None:
        """Where the files are; None without one."""
        return self._folder

    def names(self) -> list[str]:
        """The names that there are now, those that cannot be used among them."""
        with suppress(ConfigurationError):
            return self._listed()
        return []

    def named(self, name: str) -> Lora:
        """The LoRA that a request names. Raises InvalidInput when there is none, or it cannot be used."""
        if not self._holds(name):
            raise InvalidInput(f"loras names {name!r:.100}; accepted: {self._accepted()}")
        try:
            return self.read(name)
        except CheckpointError as error:
            raise InvalidInput(f"loras names {name!r:.100}, which cannot be used: {error.message}") from error

    def read(self, name: str) -> Lora:
        """The LoRA of a name, from its file if that is new or has changed. Raises CheckpointError with the reason."""
        file = self._file(name)
        state = _state_of(file)
        read = self._cached.pop(name, None)
        if read is None or read.state != state:
            read = _read(name, file, state, self._layers)
        self._cache(name, read)
        if read.lora is None:
            raise CheckpointError(read.reason)
        return read.lora

    def report(self, name: str) -> str:
        """How much of a LoRA is used, or why it cannot be."""
        try:
            return self.read(name).report
        except CheckpointError as error:
            return f"cannot be used: {error.message}"

    def _cache(self, name: str, read: _CacheEntry) -> None:
        """Keep what was read as the latest, and of the others as many as there is memory for."""
        self._cached[name] = read
        while len(self._cached) > 1 and sum(each.nbytes for each in self._cached.values()) > CACHE_BYTES:
            del self._cached[next(iter(self._cached))]

    def _listed(self) -> list[str]:
        names = [file.name.removesuffix(SUFFIX) for file in lora_files(self._folder)]
        return sorted(name for name in names if name and name.isprintable())  # others could not be shown in a response

    def _file(self, name: str) -> Path:
        assert self._folder is not None, "without a folder there are no names"
        return self._folder / f"{name}{SUFFIX}"

    def _holds(self, name: str) -> bool:
        """Whether there is a file of this name in the folder itself: no name leads out of it, or into one within."""
        if self._folder is None or not name:
            return False
        file = self._file(name)
        return file.name == f"{name}{SUFFIX}" and os.path.lexists(file)

    def _accepted(self) -> str:
        if self._folder is None:
            return "none, because none is configured"
        names = self.names()
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        return f"{', '.join(names[:NAMES_SHOWN])}{more}" if names else "none, because the folder has none"


def lora_files(folder: Path | None) -> list[Path]:
    """What calls itself a LoRA in a folder; nothing without one. Raises ConfigurationError when it cannot be read."""
    if folder is None:
        return []
    try:
        return [file for file in folder.iterdir() if file.name.endswith(SUFFIX)]
    except OSError as error:
        raise ConfigurationError(
            f"the folder of LoRAs {folder} cannot be read: {error.strerror}; accepted: a folder of {SUFFIX} files"
        ) from error


def _state_of(file: Path) -> State:
    try:
        found = file.stat()
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
    if not stat.S_ISREG(found.st_mode):  # a folder, or a pipe, whose reading might never end
        return f"{file.name} is not a file; accepted: a safetensors file"
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(name: str, file: Path, state: State, layers: Layers) -> _CacheEntry:
    """Read a file whose state was looked at before: what is written meanwhile makes it another."""
    try:
        if isinstance(state, str):
            raise CheckpointError(state)
        lora = match(read_lora(file, wants(name, layers)), layers)
    except CheckpointError as error:
        logger.warning("lora_unusable name=%s reason=%s", name, error.message)
        return _CacheEntry(state, None, error.message)
    matched, left_out = len(lora.parts), "; ".join(lora.notes) or None
    line = "lora_read name=%s format=%s layers=%d matched=%d left_out=%s"
    logger.info(line, name, lora.format, lora.layers, matched, left_out)
    return _CacheEntry(state, lora, nbytes=lora.nbytes)
