"""Safetensors files to named tensors, by memory map.

The tensors are views of the mapped file: nothing is read before it is used, nothing is copied, and writing to one
changes this process's copy of a page, never the file (`safe_open` maps privately: 500 MB of weights opened in 2 MB of
memory, checked in `tests/formats/test_detect.py`).

A header is checked here first, against the file's size and before a tensor is created. The package checks it too, but
its messages are for programmers, and it allocates what the header states before one can ask how much that is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hidream.errors import CheckpointError
from hidream.formats.json_object import JSON_MAX_BYTES, object_of, read_object, why
from hidream.formats.regular_file import open_regular

HEADER_MAX_BYTES = JSON_MAX_BYTES
"""Of a header; the package itself takes 100 MB."""
TENSORS_MAX = 65_536
"""Of one file; the published transformer has 2,000 in seven."""
NAME_MAX_CHARS = 1024
DIMS_MAX = 16
FILE_NAME_MAX_CHARS = 255
NAMES_SHOWN = 3
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Of the format's types, those of whole bytes that torch and the package both have."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # of its bytes, in the file
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself."""

    entries: dict[str, Entry]  # by the tensor's name
    metadata: dict[str, str]


def open_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of one file. Raises CheckpointError when it is torn or not a safetensors file."""
    try:
        header_of(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {reason_refused(path)}; accepted: a whole safetensors file "
            "(compare with the published size and download it again)"
        ) from error


def header_of(path: Path) -> Header:
    """What a file says of itself, read without mapping it, however large it is.

    Raises OSError, or ValueError that says what is wrong with it.
    """
    with open_regular(path) as stream:
        return header_in(stream)


def header_in(stream: BinaryIO) -> Header:
    """What an open file says of itself. Raises as `header_of` does."""
    size = stream.seek(0, 2)
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"{size:,} bytes that are not a complete safetensors file")
    if length > HEADER_MAX_BYTES:
        raise ValueError(f"a file with a header of {length:,} bytes; at most {HEADER_MAX_BYTES:,} are read")
    text = stream.read(length)
    try:
        found = object_of(text)
        metadata = {str(key): str(value) for key, value in found.pop("__metadata__", {}).items()}
        entries = {name: _entry(entry, 8 + length) for name, entry in found.items()}
    except KeyError as error:
        raise ValueError(f"a file that {error.args[0]}") from error
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError("a file whose header is not a list of tensors") from error
    _check(entries, 8 + length, size)
    return Header(entries, metadata)


def read_tensor(stream: BinaryIO, entry: Entry) -> Tensor:
    """A tensor of an open file, copied into memory. Raises OSError, or ValueError where the file ends before it."""
    if entry.start == entry.end:
        return torch.empty(entry.shape, dtype=entry.dtype)
    data = bytearray(entry.end - entry.start)
    stream.seek(entry.start)
    if stream.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise ValueError("a file that was changed while it was read")
    return torch.frombuffer(data, dtype=torch.uint8).view(entry.dtype).view(entry.shape)


def reason_refused(path: Path) -> str:
    """Describe why the package refuses a file, because its own message is for programmers."""
    try:
        header_of(path)
    except (OSError, ValueError) as error:
        return why(error)
    return f"its header does not fit its {path.stat().st_size:,} bytes, or it has an unknown type"


def shards(folder: Path) -> list[Path]:
    """The safetensors files of one part: those that its index names, or all there are.

    Raises CheckpointError when one is missing or there is none.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = _files_of_index(indices[0]) if indices else sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        shown = ", ".join(missing[:NAMES_SHOWN]) + f" and {len(missing) - NAMES_SHOWN} more" * (
            len(missing) > NAMES_SHOWN
        )
        raise CheckpointError(f"{folder} lacks {shown or 'its *.safetensors file'}")
    return files


def is_file_name(name: str) -> bool:
    """Whether a text is the name of a file or a folder alone: no path, and nothing that is not printable."""
    return (
        Path(name).name == name and name not in ("", "..") and name.isprintable() and len(name) <= FILE_NAME_MAX_CHARS
    )


def _entry(stated: object, data: int) -> Entry:
    """What a header says of a tensor, whose offsets count from `data`; KeyError with what is wrong."""
    if not isinstance(stated, dict) or not {"dtype", "shape", "data_offsets"} <= stated.keys():
        raise ValueError("no entry of a tensor")
    kind, shape, offsets = stated["dtype"], stated["shape"], stated["data_offsets"]
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise KeyError(f"has tensors of the type {kind!r:.50}, which is not supported")
    if not _are_sizes(shape) or len(shape) > DIMS_MAX or not _are_sizes(offsets) or len(offsets) != 2:
        raise KeyError(f"has a tensor of the shape {shape!r:.100} at the offsets {offsets!r:.100}")
    return Entry(dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _are_sizes(numbers: object) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number < 2**63 for number in numbers)


def _check(entries: Mapping[str, Entry], data: int, size: int) -> None:
    """Raise ValueError unless the tensors lie side by side in the file's bytes behind the header, and fill them."""
    if len(entries) > TENSORS_MAX:
        raise ValueError(f"a file with {len(entries):,} tensors; at most {TENSORS_MAX:,} are read")
    odd = next((name for name in entries if not name.isprintable() or len(name) > NAME_MAX_CHARS), None)
    if odd is not None:  # it would go into messages and logs
        raise ValueError(f"a file with the key {odd!r:.100}")
    wanted = max((entry.end for entry in entries.values()), default=data)
    if size < wanted:
        raise ValueError(f"cut off after {size:,} of {wanted:,} bytes")
    at = data
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != at or entry.end - entry.start != math.prod(entry.shape) * entry.dtype.itemsize:
            where = f"{entry.start - data:,} to {entry.end - data:,}"
            raise ValueError(f"a file whose header does not fit its {size:,} bytes: {name} {[*entry.shape]} is {where}")
        at = entry.end
    if at != size:
        raise ValueError(f"a file whose header does not fit its {size:,} bytes: its tensors end at {at:,}")


def _files_of_index(index: Path) -> list[Path]:
    accepted = "an index with a `weight_map` of names to files"
    files = read_object(index, accepted).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise CheckpointError(f"{index} cannot be read: it names no files; accepted: {accepted}")
    names = sorted(set(files.values()))
    odd = next((name for name in names if not is_file_name(name)), None)
    if odd is not None:
        raise CheckpointError(f"{index} names {odd!r:.100}; accepted: files of its own folder, by their names alone")
    return [index.parent / name for name in names]
