"""Streaming writer of safetensors files: one file, or shards with an index; each tensor is made when it is written.

The public writer needs all tensors of a file at once, and a whole converted transformer does not fit in the memory of
most machines. Here the header is written first, from shapes and types alone, and at most one piece is in memory.

Source: huggingface/safetensors, README.md, "Format"; its writer's order (largest type first) keeps tensors aligned.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Size, Tensor

Layout = Mapping[str, tuple[torch.dtype, Size]]
"""Type and shape of tensors by their name."""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls each type."""

METADATA = {"format": "pt"}
"""Without it transformers does not take a file."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Tensors that are made together: a single one, or a matrix and its scale."""

    layout: Layout
    make: Callable[[], Mapping[str, Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take in a file."""
        return sum(_nbytes(dtype, shape) for dtype, shape in self.layout.values())


def write_safetensors(
    path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str], on_piece: Callable[[int], None]
) -> None:
    """Write one file, telling `on_piece` the bytes of each. Raises OSError, and then leaves a torn one."""
    header, offsets = _header({name: entry for piece in pieces for name, entry in piece.layout.items()}, metadata)
    with path.open("wb") as stream:
        stream.write(header)
        for piece in pieces:
            for name, tensor in piece.make().items():
                assert (tensor.dtype, tensor.shape) == piece.layout[name], f"{name} is not as its layout says"
                stream.seek(len(header) + offsets[name])
                stream.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            on_piece(piece.nbytes)


def write_shards(
    folder: Path,
    stem: str,
    pieces: Sequence[Piece],
    shard_bytes: int,
    on_piece: Callable[[int], None],
    metadata: Mapping[str, str] = METADATA,
) -> None:
    """Write files of at most `shard_bytes`, or of one larger piece, and an index if it is more than one file.

    Named and indexed as `save_pretrained` of diffusers and transformers does; each file has the `metadata`.
    """
    shards = _shared_out(pieces, shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / f"{stem}.safetensors", pieces, metadata, on_piece)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"{stem}-{i:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, shard, metadata, on_piece)
        weight_map |= {name: file for piece in shard for name in piece.layout}
    index = {"metadata": {"total_size": sum(piece.nbytes for piece in pieces)}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _header(layout: Layout, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and where each tensor begins behind them."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offsets: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        offsets[name], end = end, end + _nbytes(dtype, shape)
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [offsets[name], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offsets


def _shared_out(pieces: Sequence[Piece], shard_bytes: int) -> list[list[Piece]]:
    shards: list[list[Piece]] = [[]]
    room = shard_bytes
    for piece in pieces:
        if shards[-1] and piece.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(piece)
        room -= piece.nbytes
    return shards


def _nbytes(dtype: torch.dtype, shape: Size) -> int:
    return dtype.itemsize * shape.numel()
