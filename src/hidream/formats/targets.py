"""Writes one part in one of three formats, and knows the types of each format.

Folders of several parts and existing targets are the business of `convert.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Size

from hidream.errors import ConfigurationError
from hidream.formats import rename
from hidream.formats.detect import Published
from hidream.formats.gguf_file import write_gguf
from hidream.formats.quantized import GGUF_WRITABLE, Quantized, StoredTensor
from hidream.formats.retype import FP8, FP8_SCALED, PLAIN, pieces
from hidream.formats.safetensors_writer import METADATA, Piece, write_safetensors, write_shards
from hidream.parts import Kind
from hidream.types import Variant

Config = Mapping[str, Any]
"""`config.json` of diffusers or transformers."""
Infer = Callable[[Kind, Mapping[str, Size]], Config]
"""Infers the configuration of a part from the shapes of its tensors, if its file does not state it."""
OnBytes = Callable[[int, int], None]
"""Called with the bytes that are done, and the bytes in all."""


class Format(StrEnum):
    """What can be written.

    DIFFUSERS: a folder with config.json and safetensors, in shards with an index where they are large.
    COMFY: one safetensors file in ComfyUI's names.
    GGUF: one file of architecture `hidream`, of a transformer.
    """

    DIFFUSERS = "diffusers"
    COMFY = "comfy"
    GGUF = "gguf"


TYPES: dict[Format, tuple[str, ...]] = {
    Format.DIFFUSERS: tuple(PLAIN),
    Format.COMFY: (*PLAIN, FP8, FP8_SCALED),
    Format.GGUF: (*PLAIN, *GGUF_WRITABLE),
}
"""The types that each format can be written in."""
GGUF_NAMES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32", **{name: name for name in GGUF_WRITABLE}}
SIXTEEN_BITS = (torch.float32, torch.bfloat16, torch.float16)
KEPT_DTYPES = {Format.DIFFUSERS: SIXTEEN_BITS, Format.COMFY: (*SIXTEEN_BITS, torch.float8_e4m3fn, torch.float8_e5m2)}
"""The types that a tensor may keep."""
FILE_STEMS = {Kind.TRANSFORMER: "diffusion_pytorch_model", Kind.VAE: "diffusion_pytorch_model"}
"""How diffusers names files of weights; transformers calls them `model`."""
SHARD_BYTES = 5 * 10**9
"""As the published transformer has them."""


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """The options of a conversion."""

    to: Format
    type: str | None = None  # one of TYPES; None: the stored type, if the format supports it
    shard_bytes: int = SHARD_BYTES
    force: bool = False  # replace what is there
    variant: Variant | None = None  # which transformer, if a folder has several


def resolve_type(to: Format, asked: str | None) -> str | None:
    """The type by its name in TYPES. Raises ConfigurationError on one that the format does not have."""
    if asked is None:
        return None
    for name in TYPES[to]:
        if asked.lower() in (name.lower(), GGUF_NAMES.get(name, name).lower()):
            return name
    why = " (the package gguf has no writer for K- and IQ-types)" if to is Format.GGUF else ""
    raise ConfigurationError(f"{to} files cannot be written in {asked!r}{why}; accepted: {', '.join(TYPES[to])}")


def write(
    path: Path,
    published: Published,
    stated: Mapping[str, Config],
    options: ConversionOptions,
    infer: Infer,
    on_bytes: OnBytes,
) -> None:
    """Write one part to `path`: a file, or a folder that this makes.

    `stated` is what the part says of itself (`config`), and what else goes with it into the metadata of a file.
    Raises ConfigurationError on what the format has no place for, and OSError when writing fails.
    """
    if options.to is Format.GGUF:
        _to_gguf(path, published, stated, options.type, on_bytes)
    elif options.to is Format.COMFY:
        _to_comfy(path, published, stated, options.type, on_bytes)
    else:
        beside = {key: value for key, value in stated.items() if key != "config"}
        shapes = {name: value.shape for name, value in published.tensors.items()}
        _to_folder(path, published, stated.get("config") or infer(published.kind, shapes), beside, options, on_bytes)


def _to_gguf(
    path: Path, published: Published, stated: Mapping[str, Config], kind: str | None, on_bytes: OnBytes
) -> None:
    if published.kind is not Kind.TRANSFORMER:
        raise ConfigurationError(f"{published.path} holds {published.kind}; accepted for gguf: {Kind.TRANSFORMER}")
    total = sum(value.nbytes for value in published.tensors.values())
    kind = GGUF_NAMES[kind or _most_common_type(published)]
    write_gguf(path, published.tensors, kind, _metadata(stated), on_tensor=_cumulative(total, on_bytes))


def _to_comfy(
    path: Path, published: Published, stated: Mapping[str, Config], kind: str | None, on_bytes: OnBytes
) -> None:
    if published.kind is Kind.VAE and kind in (FP8, FP8_SCALED):
        raise ConfigurationError(f"{published.kind} cannot be written in {kind!r}; accepted: {', '.join(PLAIN)}")
    named = rename.for_comfy(published.tensors, published.kind)
    made = pieces(named, published.kind, kind, KEPT_DTYPES[Format.COMFY])
    write_safetensors(path, made, METADATA | _metadata(stated), _cumulative(_nbytes(made), on_bytes))


def _to_folder(
    path: Path,
    published: Published,
    config: Config,
    beside: Mapping[str, Config],
    options: ConversionOptions,
    on_bytes: OnBytes,
) -> None:
    path.mkdir()
    named = rename.for_diffusers(published.tensors, published.kind)
    made = pieces(named, published.kind, options.type, KEPT_DTYPES[Format.DIFFUSERS])
    stem = FILE_STEMS.get(published.kind, "model")
    metadata = METADATA | _metadata(beside)
    write_shards(path, stem, made, options.shard_bytes, _cumulative(_nbytes(made), on_bytes), metadata)
    retyped = {key: _torch_name(options.type) for key in ("dtype", "torch_dtype") if key in config and options.type}
    (path / "config.json").write_text(json.dumps({**config, **retyped}, indent=2) + "\n")


def _metadata(stated: Mapping[str, Config]) -> dict[str, str]:
    """Where `detect.metadata_object` looks; a published file has none, and neither has what is made of it."""
    return {key: json.dumps(value) for key, value in stated.items()}


def _torch_name(kind: str | None) -> str:
    return str(PLAIN[kind]).removeprefix("torch.") if kind else ""


def _nbytes(made: list[Piece]) -> int:
    return sum(piece.nbytes for piece in made)


def _cumulative(total: int, on_bytes: OnBytes) -> Callable[[int], None]:
    """Turn single tensors' bytes into a sum."""
    done = 0

    def add(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        on_bytes(done, total)

    return add


def _most_common_type(published: Published) -> str:
    """The type of most matrices. Raises ConfigurationError when a GGUF file cannot be written in it."""
    counted = Counter(_type(value) for value in published.tensors.values() if len(value.shape) > 1)
    kind = counted.most_common(1)[0][0]
    if kind not in TYPES[Format.GGUF]:
        accepted = ", ".join(TYPES[Format.GGUF])
        raise ConfigurationError(
            f"{published.path} is in {kind}, a type that gguf files cannot be written in; accepted: {accepted}"
        )
    return kind


def _type(value: StoredTensor) -> str:
    if isinstance(value, Quantized):
        return str(value.scheme)
    names = {dtype: name for name, dtype in PLAIN.items()}
    return names.get(value.dtype, str(value.dtype).removeprefix("torch."))
