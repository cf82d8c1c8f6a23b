"""Joins 8-bit matrices with their scales, as ComfyUI's files store them; a missing one is an error.

Without its scale, a matrix still has valid numbers, and the model would generate another image. So a file that states
in any way that it is scaled must have a scale for every matrix in 8 bits. (ComfyUI itself uses 1 for a missing scale.)
Tensors of one dimension, and those in 16 or 32 bits, never have one. A file that states nothing is a plain cast
(`hidream_i1_*_fp8`), whose values are the weights.

Source: Comfy-Org/ComfyUI, comfy/ops.py (scaled_fp8_ops), comfy/utils.py (convert_old_quants).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hidream.errors import CheckpointError
from hidream.formats.json_object import object_of
from hidream.formats.quantized import Quantized, Scheme, StoredTensor

SCALES = (".scale_weight", ".weight_scale")
"""A matrix's scale, in the older and the newer of Comfy's spellings."""
LAYER_FORMAT = ".comfy_quant"
"""Of a layer: how it is quantised, as JSON in bytes. Also in the metadata, for all layers at once (METADATA)."""
METADATA = "_quantization_metadata"
IGNORED = (".scale_input", ".input_scale", LAYER_FORMAT)
"""Only for products in 8 bits: ComfyUI too ignores them when it multiplies in 16 bits, as is done here."""
MARKER = "scaled_fp8"
QUANTIZED_AS = {torch.float8_e4m3fn: Scheme.FP8, torch.float8_e5m2: Scheme.FP8, torch.int8: Scheme.INT8}
FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
"""Of `.comfy_quant`, those that are a matrix times a scale."""
NEVER_SCALED = ("relative_attention_bias.weight",)
"""A table that T5 looks up and does not multiply with."""
NAME_MAX_CHARS = 1024
TEXT_MAX_BYTES = 2**16
"""Maximum size of a text in a tensor; published ones have 20 to 200 bytes."""
NAMES_SHOWN = 3


def tensors_of_metadata(metadata: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """Return the quantisation of the layers in a file's metadata, as the tensors that other files have for it.

    Raises CheckpointError when they cannot be read.
    """
    if METADATA not in metadata:
        return {}
    try:
        layers = object_of(metadata[METADATA])["layers"]
        if not all(layer.isprintable() and len(layer) <= NAME_MAX_CHARS for layer in layers):
            raise ValueError("a layer's name that is not printable or too long")
        return {layer + LAYER_FORMAT: _in_bytes(json.dumps(how)) for layer, how in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its metadata `{METADATA}` cannot be read; accepted: `layers` in JSON"
        ) from error


def with_scales(tensors: Mapping[str, StoredTensor], path: str) -> dict[str, StoredTensor]:
    """Join each matrix with its scale; a file without scales stays as it is.

    Raises CheckpointError on a quantisation that is more than a matrix times a scale, on a matrix without its scale and
    the other way round, and on a scale that is not a positive number.
    """
    for name, tensor in tensors.items():
        if name.endswith(LAYER_FORMAT) and isinstance(tensor, Tensor):
            _check_format(name, tensor, path)
    scales = _scales(tensors, path)
    _check_complete(tensors, scales, path)
    return {
        name: _scaled(name, tensor, scales[name], path) if name in scales else tensor
        for name, tensor in tensors.items()
        if name != MARKER and not name.endswith((*SCALES, *IGNORED))
    }


def _scales(tensors: Mapping[str, StoredTensor], path: str) -> dict[str, StoredTensor]:
    """The scale of each matrix, by the matrix's name."""
    scales: dict[str, StoredTensor] = {}
    for key, scale in tensors.items():
        name = next((key.removesuffix(ending) + ".weight" for ending in SCALES if key.endswith(ending)), None)
        if name in scales:
            raise CheckpointError(f"{path}: {name} has two scales; accepted: one of {' or '.join(SCALES)}")
        if name is not None:
            scales[name] = scale
    return scales


def _check_complete(tensors: Mapping[str, StoredTensor], scales: Collection[str], path: str) -> None:
    wanted = {name.removesuffix(LAYER_FORMAT) + ".weight" for name in tensors if name.endswith(LAYER_FORMAT)}
    if any(name == MARKER or name.endswith((*SCALES, *IGNORED)) for name in tensors):
        wanted |= {name for name, tensor in tensors.items() if _is_in_eight_bits(name, tensor)}
    for what, names in (
        ("matrices in 8 bits lack their scale", wanted.difference(scales)),
        ("scales lack their matrix", set(scales).difference(tensors)),
    ):
        if names:
            raise CheckpointError(
                f"{path}: {len(names)} {what}: {first_names(names)}; accepted: a scale ({' or '.join(SCALES)}) for "
                f"every matrix of a file that has scales or says so (`{MARKER}`, `{LAYER_FORMAT}`), as published"
            )


def _is_in_eight_bits(name: str, tensor: StoredTensor) -> bool:
    """Whether a tensor of a scaled file means nothing without its scale."""
    if not isinstance(tensor, Tensor) or name.endswith(NEVER_SCALED):
        return False
    return tensor.dim() > 1 and tensor.dtype in QUANTIZED_AS


def _scaled(name: str, tensor: StoredTensor, scale: StoredTensor, path: str) -> Quantized:
    if not isinstance(tensor, Tensor) or not isinstance(scale, Tensor) or tensor.dtype not in QUANTIZED_AS:
        kind = str(tensor.dtype) if isinstance(tensor, Tensor) else tensor.scheme
        raise CheckpointError(
            f"{path}: {name} has a scale, but is {kind}; accepted: {', '.join(str(kind) for kind in QUANTIZED_AS)}"
        )
    if tensor.dim() != 2:
        raise CheckpointError(f"{path}: {name} {list(tensor.shape)} has a scale; accepted: matrices")
    if scale.numel() not in (1, tensor.shape[0]):
        raise CheckpointError(
            f"{path}: {name} {list(tensor.shape)} has a scale {list(scale.shape)}; accepted: one, or one for each row"
        )
    if not scale.dtype.is_floating_point or not bool(((scale.float() > 0) & scale.float().isfinite()).all()):
        shown = f"{float(scale.float().min()):g}" if scale.numel() == 1 else f"{scale.dtype} {list(scale.shape)}"
        raise CheckpointError(f"{path}: the scale of {name} is {shown}; accepted: positive numbers, none infinite")
    scale = scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1)
    return Quantized(QUANTIZED_AS[tensor.dtype], {"data": tensor, "scale": scale}, tensor.shape)


def _check_format(name: str, tensor: Tensor, path: str) -> None:
    try:
        stated: object = object_in(tensor)
    except ValueError:
        stated = "something that cannot be read"
    if not isinstance(stated, dict) or stated.get("format") not in FORMATS or stated.get("convrot"):
        raise CheckpointError(f"{path}: {name} says {stated!s:.200}; accepted: {', '.join(FORMATS)}, without rotation")


def object_in(tensor: Tensor) -> dict[str, Any]:
    """The JSON object that a tensor of bytes is. Raises ValueError when it is none, or none of a sensible length."""
    if tensor.dtype is not torch.uint8 or tensor.numel() > TEXT_MAX_BYTES:
        raise ValueError(f"it is {tensor.dtype} {list(tensor.shape)}, not at most {TEXT_MAX_BYTES:,} bytes")
    return object_of(tensor.flatten().numpy().tobytes())


def _in_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def first_names(names: Iterable[str]) -> str:
    """The first few of many names."""
    shown = sorted(names)
    return ", ".join(shown[:NAMES_SHOWN]) + ", …" * (len(shown) > NAMES_SHOWN)
