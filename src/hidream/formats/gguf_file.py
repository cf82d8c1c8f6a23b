"""Reads GGUF files by memory map, without a copy, and writes them.

Names and shapes are those of the published checkpoint, as city96's converter keeps them: GGUF's reversed order of
dimensions is undone, and `comfy.gguf.orig_shape.<name>` gives the shape of a tensor that was reshaped to be quantised.
llama.cpp's encoders have other names (`gguf_encoders.py`). Knows no modules.

Source: ggml, docs/gguf.md; city96/ComfyUI-GGUF, loader.py and tools/convert.py.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from torch import Tensor

from hidream.errors import CheckpointError, ConfigurationError
from hidream.formats.gguf_encoders import ARCHITECTURES, config, renamed
from hidream.formats.gguf_grids import GGUF_TYPES
from hidream.formats.gguf_reader import DIMS_MAX, MAGIC, Entry, OtherByteOrder, UnknownType, read_header
from hidream.formats.json_object import why
from hidream.formats.quantized import GGUF_WRITABLE, Quantized, from_blocks, quantize
from hidream.formats.regular_file import open_regular

ARCHITECTURE = "hidream"
UNNAMED = ("", "pig", "cow")
"""Architectures that say nothing: none at all (stable-diffusion.cpp), and what calcuis' converters always write."""
HIDREAM_KEY = "caption_projection.0.linear.weight"
"""A tensor that only HiDream-I1 has, by which its files are known where their architecture says nothing."""
ORIGINAL = (
    "text_model.encoder.layers.",
    "transformer.resblocks.",
    "encoder.block.0.layer.0.SelfAttention.",
    "model.layers.0.self_attn.",
    "decoder.conv_in.",
)
"""How names of the other parts begin where their architecture says nothing, and they have kept their names."""

PLAIN: dict[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WRITABLE = (*PLAIN, *GGUF_WRITABLE)
SMALL_VALUES = 1024
"""Tensors of at most so many values stay float32 (city96, tools/convert.py, QUANTIZATION_THRESHOLD)."""
ORIGINAL_DIMS_MAX = 8
"""Of the shape that a tensor had before it was reshaped; videos' convolutions have five."""
EXACT = ".gate.weight"
"""Chooses the experts, and stays float32 (city96, tools/convert.py, ModelHiDream.keys_hiprec)."""


@dataclass(frozen=True, slots=True)
class GGUF:
    """An open file: its tensors are the file's mapping, whose pages are read when they are used."""

    architecture: str
    metadata: Mapping[str, Any]  # all other keys: numbers, strings and lists
    tensors: Mapping[str, Tensor | Quantized]


def open_gguf(path: Path) -> GGUF:
    """Open a file of HiDream-I1.

    The mapping is private: writing to a tensor would not change the file. Raises CheckpointError when the file is not
    GGUF, torn, of another architecture, or has a tensor of a type that the `gguf` package cannot read.
    """
    metadata, entries = _read(path)
    named = str(metadata.pop("general.architecture", ""))
    if metadata.get("split.count", 1) != 1:
        raise CheckpointError(
            f"{path} is one of several files of a model; accepted: one merged file (llama-gguf-split --merge)"
        )
    known = named in UNNAMED and any(name.endswith(HIDREAM_KEY) or name.startswith(ORIGINAL) for name in entries)
    if named not in (ARCHITECTURE, *ARCHITECTURES) and not known:
        accepted = ", ".join(map(repr, (ARCHITECTURE, *ARCHITECTURES)))
        raise CheckpointError(f"{path} holds a model of architecture {named!r:.100}; accepted: {accepted}")
    tensors = {name: _tensor(path, name, entry, metadata) for name, entry in entries.items()}
    return _encoder(path, named, metadata, tensors) if named in ARCHITECTURES else GGUF(ARCHITECTURE, metadata, tensors)


def write_gguf(
    path: Path,
    tensors: Mapping[str, Tensor | Quantized],
    kind: str,
    metadata: Mapping[str, str] | None = None,
    on_tensor: Callable[[int], None] | None = None,
) -> None:
    """Write tensors under their published names, the matrices in the type `kind`, one of WRITABLE.

    What is small, has one dimension, chooses experts or has rows that `kind` cannot hold is written as float32. One
    tensor at a time is converted, `on_tensor` is called with its bytes, and the file appears at `path` when complete.
    Raises ConfigurationError on a type that cannot be written.
    """
    if kind not in WRITABLE:
        raise ConfigurationError(f"GGUF files cannot be written in {kind!r}; accepted: {', '.join(WRITABLE)}")
    for name, value in tensors.items():
        if not 1 <= len(value.shape) <= DIMS_MAX:
            raise ConfigurationError(
                f"GGUF files cannot hold {name} of shape {list(value.shape)}; accepted: 1 to {DIMS_MAX} dimensions"
            )
    kinds = {name: _kind(name, value.shape, kind) for name, value in tensors.items()}
    writer = GGUFWriter(None, ARCHITECTURE)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(LlamaFileType[f"{'ALL' if kind == 'F32' else 'MOSTLY'}_{kind}{'_MOE' * (kind == 'MXFP4')}"])
    for key, text in (metadata or {}).items():
        writer.add_string(key, text)
    for name, value in tensors.items():
        block_type = GGMLQuantizationType[kinds[name]]
        row = gguf.quant_shape_to_byte_shape(tuple(value.shape), block_type)
        writer.add_tensor_info(name, row, np.dtype(np.uint8), int(np.prod(row)), block_type)
    partial = path.with_name(path.name + ".part")
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, value in tensors.items():
            writer.write_tensor_data(_stored_bytes(value, kinds[name]))
            if on_tensor is not None:
                on_tensor(value.nbytes)
    finally:
        writer.close()
    partial.replace(path)


def _encoder(path: Path, named: str, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor | Quantized]) -> GGUF:
    """An encoder of llama.cpp in the names of transformers, and its `config.json` among the metadata."""
    try:
        stated = json.dumps(config(named, metadata, tensors))
        return GGUF(named, {**metadata, "config": stated}, renamed(named, metadata, tensors))
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error.args[0]}; accepted: a complete {named} of llama.cpp") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not a readable {named} of llama.cpp: {error}") from error
    except (TypeError, IndexError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path} is not a {named} of llama.cpp: its tensors or numbers have other shapes"
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    try:
        with open_regular(path) as stream:
            if stream.read(4) != MAGIC:
                raise CheckpointError(f"{path} is not a GGUF file: it does not start with these four letters")
        return read_header(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {why(error)}") from error
    except OtherByteOrder as error:
        raise CheckpointError(
            f"{path} is written for machines of the other byte order; accepted: {sys.byteorder}-endian"
        ) from error
    except UnknownType as error:
        raise CheckpointError(
            f"{path} has a tensor of an unknown type: {error} is not a valid one; accepted: {_accepted()}"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged, or not a GGUF file of version 2 or 3: {error}; accepted: a complete one "
            f"({path.stat().st_size:,} bytes here: compare with the published size and download it again)"
        ) from error


def _tensor(path: Path, name: str, entry: Entry, metadata: Mapping[str, Any]) -> Tensor | Quantized:
    kind, stored = entry.kind.name, list(entry.shape)
    if kind not in PLAIN and kind not in GGUF_TYPES:
        raise CheckpointError(f"{path} has {name} in the type {kind}; accepted: {_accepted()}")
    original = metadata.get(f"comfy.gguf.orig_shape.{name}", stored)
    is_shape = (
        isinstance(original, list)
        and len(original) <= ORIGINAL_DIMS_MAX
        and all(type(size) is int and size > 0 for size in original)
    )
    if original != stored and not (is_shape and math.prod(original) == math.prod(stored)):
        raise CheckpointError(f"{path} has {name} of shape {stored}, which cannot have been {original!s:.100}")
    shape = torch.Size(original)
    data = torch.from_numpy(entry.data)
    return data.view(PLAIN[kind]).view(shape) if kind in PLAIN else from_blocks(kind, data, shape)


def _accepted() -> str:
    return ", ".join((*PLAIN, *GGUF_TYPES))


def _kind(name: str, shape: torch.Size, kind: str) -> str:
    """Return the type in which one tensor is written."""
    if len(shape) < 2 or shape.numel() <= SMALL_VALUES or name.endswith(EXACT):
        return "F32"
    return kind if kind in PLAIN or shape[-1] % GGUF_TYPES[kind].values == 0 else "F32"


def _stored_bytes(value: Tensor | Quantized, kind: str) -> np.ndarray:
    if isinstance(value, Quantized) and value.scheme != kind:
        value = value.dense(torch.float32)
    if isinstance(value, Tensor):
        value = value.to(PLAIN[kind]) if kind in PLAIN else quantize(value, kind)
    data = value if isinstance(value, Tensor) else value.parts["data"]
    return data.contiguous().cpu().flatten().view(torch.uint8).numpy()
