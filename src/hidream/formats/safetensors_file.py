"""Safetensors files to named tensors, by memory map.

The tensors are views of the mapped file: nothing is read before it is used, nothing is copied, and writing to one
changes this process's copy of a page, never the file (`safe_open` maps privately: 500 MB of weights opened in 2 MB of
memory, checked in `tests/formats/test_detect.py`).
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hidream.errors import CheckpointError
from hidream.formats.json_object import object_of, read_object, why

HEADER_MAX_BYTES = 100_000_000
"""The package's own limit."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself."""

    shapes: dict[str, tuple[int, ...]]  # of its tensors, by name
    metadata: dict[str, str]


def open_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of one file. Raises CheckpointError when it is torn or not a safetensors file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {wrong_with(path)}; accepted: a whole safetensors file "
            "(compare with the published size and download it again)"
        ) from error


def header_of(path: Path) -> Header:
    """What a file says of itself, read without mapping it, however large it is.

    Raises OSError, or ValueError that says what is wrong with it.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # the reading of a pipe might never end
        raise ValueError("no file")
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_MAX_BYTES):
            raise ValueError(f"{size:,} bytes that are no safetensors file, or not all of it")
        text = stream.read(length)
    try:
        found = object_of(text)
        metadata = found.pop("__metadata__", {})
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in found.items()}
        wanted = 8 + length + max((int(entry["data_offsets"][1]) for entry in found.values()), default=0)
        said = {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError("a file whose header is no list of tensors") from error
    if size < wanted:
        raise ValueError(f"cut off after {size:,} of {wanted:,} bytes")
    return Header(shapes, said)


def wrong_with(path: Path) -> str:
    """What is wrong with a file that the package refuses, whose own words are for programmers."""
    try:
        header_of(path)
    except (OSError, ValueError) as error:
        return why(error)
    return f"its header does not fit its {path.stat().st_size:,} bytes, or has a type that is not known"


def shards(folder: Path) -> list[Path]:
    """The safetensors files of one part: those that its index names, or all there are.

    Raises CheckpointError when one is missing or there is none.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = _named_by(indices[0]) if indices else sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(f"{folder} lacks {', '.join(missing) or 'its *.safetensors file'}")
    return files


def _named_by(index: Path) -> list[Path]:
    accepted = "an index with a `weight_map` of names to files"
    files = read_object(index, accepted).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise CheckpointError(f"{index} cannot be read: it names no files; accepted: {accepted}")
    return [index.parent / name for name in sorted(set(files.values()))]
