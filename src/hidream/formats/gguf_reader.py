"""Reads a GGUF file's header in one pass, and compares every length with the file before it is used.

The `gguf` package's own reader trusts each number: with a list of 2⁴⁰ entries in a file of 100 bytes, it runs until
memory is exhausted, and a list of 300,000 texts, as tokenizers have, takes half a minute. Here, time and memory are
proportional to the header, whose size is limited.

Source: ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from hidream.formats.regular_file import open_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_MAX_BYTES = 2**26
"""Of metadata and list of tensors together; with the tokenizer of Llama-3.1 they are 8 MB, with Gemma's 15."""
ENTRIES_MAX = 65_536
"""Of metadata, and of tensors; the published models have up to 2,000."""
LONG = 1024
"""Longer lists are skipped; the longest that is read has one number for each layer or dimension."""
DIMS_MAX = 4
"""GGML_MAX_DIMS."""
NAME_MAX_BYTES = 1024
ALIGNMENT = 32
"""Of the tensors' data where the metadata do not say another."""

SCALARS: Mapping[GGUFValueType, struct.Struct] = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
    GGUFValueType.BOOL: struct.Struct("<?"),
}
UINT32, UINT64 = SCALARS[GGUFValueType.UINT32], SCALARS[GGUFValueType.UINT64]


@dataclass(frozen=True, slots=True)
class Entry:
    """What the header says of a tensor."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # as torch has it: the other way round than in the file
    data: NDArray[np.uint8]  # its bytes, of the file's mapping [..., bytes of one row]


class OtherByteOrder(ValueError):
    """The file was written for machines of the other byte order."""


class UnknownType(ValueError):
    """A tensor has a type that the `gguf` package does not know."""


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Metadata, but for long lists, and tensors by name. Raises OSError, or ValueError that says what is wrong."""
    with open_regular(path) as stream:
        data: NDArray[np.uint8] = np.memmap(stream, mode="c", dtype=np.uint8)  # torch wants writable memory
    header = _Header(data.data[:HEADER_MAX_BYTES], whole=len(data) <= HEADER_MAX_BYTES)
    if header.take(4) != MAGIC:
        raise ValueError("it does not start with GGUF")
    version = header.number(UINT32)
    if version & 0xFFFF == 0 and version:
        raise OtherByteOrder(f"it is not {sys.byteorder}-endian")
    if version not in VERSIONS:
        raise ValueError(f"it is of version {version}")
    tensors, values = header.count("tensors"), header.count("metadata")
    metadata: dict[str, Any] = {}
    for _ in range(values):
        key = header.text(NAME_MAX_BYTES, "a key")
        if key in metadata:
            raise ValueError(f"it has the key {key!r:.100} twice")
        metadata[key] = header.value(header.kind(key), key)
    stated = [header.tensor() for _ in range(tensors)]
    start = _aligned(header.at, _alignment(metadata))
    entries = {name: _entry(name, kind, shape, start + offset, data) for name, kind, shape, offset in stated}
    if len(entries) != len(stated):
        raise ValueError("it has two tensors of one name")
    _check_apart(stated, entries, _alignment(metadata))
    return {key: value for key, value in metadata.items() if value is not None}, entries


class _Header:
    """A place in a header, which moves on with whatever is read there."""

    def __init__(self, data: memoryview, *, whole: bool) -> None:
        self._data, self._whole, self.at = data, whole, 0

    def take(self, count: int) -> memoryview:
        """The next bytes. Raises ValueError when the header ends before."""
        if count > len(self._data) - self.at:
            what = "the file" if self._whole else f"what is read of a header, {HEADER_MAX_BYTES:,} bytes,"
            raise ValueError(f"{what} ends within its header")
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, kind: struct.Struct) -> Any:  # noqa: ANN401 - a number of any type
        """The next number."""
        return kind.unpack(self.take(kind.size))[0]

    def count(self, what: str) -> int:
        """How many there are of something."""
        count: int = self.number(UINT64)
        if count > ENTRIES_MAX:
            raise ValueError(f"it has {count:,} {what}; accepted: at most {ENTRIES_MAX:,}")
        return count

    def text(self, most_bytes: int, what: str) -> str:
        """The next text, preceded by its length; with a limit it is a name, which must be printable."""
        length = self.number(UINT64)
        if length > most_bytes:
            raise ValueError(f"{what} has {length:,} bytes; accepted: at most {most_bytes:,}")
        try:
            text = str(self.take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} is not UTF-8 text") from error
        if most_bytes == NAME_MAX_BYTES and not text.isprintable():  # it would go into messages and logs
            raise ValueError(f"{what} is not printable: {text!r:.100}")
        return text

    def kind(self, key: str) -> GGUFValueType:
        """The next value's type."""
        number = self.number(UINT32)
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise ValueError(f"{key} has the type {number}, which is not known") from error

    def value(self, kind: GGUFValueType, key: str) -> Any:  # noqa: ANN401 - a number, a text or a list of them
        """The next value; None for a list of more than LONG entries."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind is GGUFValueType.STRING:
            return self.text(HEADER_MAX_BYTES, key)
        of, length = self.kind(key), self.number(UINT64)
        if of is GGUFValueType.ARRAY:  # neither ggml nor any converter writes them
            raise ValueError(f"{key} is a list of lists; accepted: lists of numbers or of texts")
        if length <= LONG:
            return [self.value(of, key) for _ in range(length)]
        if of in SCALARS:
            self.take(length * SCALARS[of].size)
            return None
        if length > len(self._data) // UINT64.size:
            raise ValueError(f"{key} has {length:,} texts, more than the file has bytes for")
        self._pass_over_texts(length)
        return None

    def _pass_over_texts(self, count: int) -> None:
        """In one loop without calls: a tokenizer's list has 300,000."""
        at, end, unpack, data = self.at, len(self._data) - UINT64.size, UINT64.unpack_from, self._data
        for _ in range(count):
            if at > end:  # what is left is no length
                at = end + UINT64.size + 1
                break
            at += UINT64.size + unpack(data, at)[0]
        self.take(at - self.at)

    def tensor(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
        """The next tensor's name, type, shape and offset."""
        name = self.text(NAME_MAX_BYTES, "a tensor's name")
        dims = self.number(UINT32)
        if dims > DIMS_MAX:
            raise ValueError(f"{name} has {dims:,} dimensions; accepted: at most {DIMS_MAX}")
        shape = tuple(reversed([self.number(UINT64) for _ in range(dims)]))
        number, offset = self.number(UINT32), self.number(UINT64)
        try:
            return name, GGMLQuantizationType(number), shape, offset
        except ValueError as error:
            raise UnknownType(str(number)) from error


def _alignment(metadata: Mapping[str, Any]) -> int:
    stated = metadata.get("general.alignment", ALIGNMENT)
    if type(stated) is not int or stated < 8 or stated & (stated - 1):
        raise ValueError(f"general.alignment is {stated!r:.50}; accepted: a power of two of at least 8")
    return stated


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment


def _entry(name: str, kind: GGMLQuantizationType, shape: tuple[int, ...], at: int, data: NDArray[np.uint8]) -> Entry:
    """The bytes of a tensor that begins `at` a place of the file."""
    if 0 in shape:
        raise ValueError(f"{name} {list(shape)} is empty")
    values, block_bytes = GGML_QUANT_SIZES[kind]
    row = shape[-1] if shape else 1
    if row % values:
        raise ValueError(f"{name} has rows of {row:,} values; accepted for {kind.name}: whole blocks of {values}")
    row_bytes = row // values * block_bytes
    count = math.prod(shape[:-1]) * row_bytes
    if at + count > len(data):
        raise ValueError(f"the file ends within {name} {list(shape)}: {at + count:,} of {len(data):,} bytes")
    return Entry(kind, shape, data[at : at + count].reshape(*shape[:-1], row_bytes))


def _check_apart(
    stated: list[tuple[str, GGMLQuantizationType, tuple[int, ...], int]], entries: Mapping[str, Entry], alignment: int
) -> None:
    """Raise ValueError when tensors share bytes, by which a small file would be a large model."""
    end = 0
    for name, _, _, offset in sorted(stated, key=lambda each: (each[3], entries[each[0]].data.nbytes)):
        if offset % alignment or offset < end:
            raise ValueError(f"{name} is at {offset:,}; accepted: multiples of {alignment}, each behind the one before")
        end = offset + entries[name].data.nbytes
