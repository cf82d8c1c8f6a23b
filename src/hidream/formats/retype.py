"""The type in which each tensor of a part is written to a safetensors file, and the conversion to it.

A plain type applies to all tensors. An 8-bit type applies to the matrices of linear layers; the others keep their type,
as do all if no type is requested. What the target cannot hold (blocks of GGUF, 4 bits, a scale for each row) becomes
bfloat16, in which HiDream-I1 is published. Knows no files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Size, Tensor

from hidream.errors import ConfigurationError
from hidream.formats.comfy_scales import MARKER
from hidream.formats.quantized import Quantized, Scheme, StoredTensor
from hidream.formats.safetensors_writer import Piece
from hidream.parts import Kind

PLAIN = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FP8, FP8_SCALED = "fp8", "fp8_scaled"
PUBLISHED = torch.bfloat16
E4M3 = torch.float8_e4m3fn
E4M3_MAX = torch.finfo(E4M3).max

UNQUANTISED: dict[Kind, tuple[str, ...]] = {
    Kind.TRANSFORMER: (".gate.", "t_embedder.", "p_embedder.", "x_embedder.", "final_layer."),
    Kind.CLIP: ("embedding", "text_projection."),
    Kind.T5: ("shared.", "relative_attention_bias."),
    Kind.LLAMA: ("embed_tokens.",),
}
"""Matrices that eight bits are not for: what ComfyUI does not multiply with (it would not look for a scale), and the
transformer's ends, a five-hundredth of it. ComfyUI before convert_old_quants casts those ends to plain fp8."""


def pieces(
    tensors: Mapping[str, StoredTensor], kind: Kind, requested: str | None, kept_dtypes: Collection[torch.dtype]
) -> list[Piece]:
    """Return how each tensor is written in the type `requested`: one of PLAIN, FP8, FP8_SCALED; None keeps its type.

    `kept_dtypes` are the types that the target can hold; matrices with one scale count as E4M3. Making a piece raises
    ConfigurationError if a value leaves fp16's range.
    """
    made = [_piece(name, value, kind, requested, kept_dtypes) for name, value in tensors.items()]
    if any(len(piece.layout) > 1 for piece in made):
        # two values and not none: the products are to be made in 16 bits (ComfyUI, comfy/utils.py, convert_old_quants)
        made.append(Piece({MARKER: (E4M3, Size([2]))}, lambda: {MARKER: torch.zeros(2).to(E4M3)}))
    return made


def is_matrix(name: str, shape: Size, kind: Kind) -> bool:
    """Whether a tensor is a linear layer's matrix that may be stored in eight bits."""
    return len(shape) == 2 and name.endswith(".weight") and not any(mark in name for mark in UNQUANTISED.get(kind, ()))


def _piece(
    name: str, value: StoredTensor, kind: Kind, requested: str | None, kept_dtypes: Collection[torch.dtype]
) -> Piece:
    if requested in PLAIN:
        return _single(name, value, PLAIN[requested])
    may = is_matrix(name, value.shape, kind)
    if (requested == FP8_SCALED and may) or (requested is None and E4M3 in kept_dtypes and _has_one_scale(value)):
        return _scaled(name, value)
    if requested == FP8 and may:
        return _single(name, value, E4M3)
    # beside scaled matrices, eight bits without a scale would be taken for ones that have lost it
    kept = [dtype for dtype in kept_dtypes if requested != FP8_SCALED or dtype.itemsize > 1]
    return _single(name, value, value.dtype if isinstance(value, Tensor) and value.dtype in kept else PUBLISHED)


def _single(name: str, value: StoredTensor, dtype: torch.dtype) -> Piece:
    return Piece({name: (dtype, value.shape)}, lambda: {name: _dense(name, value, dtype)})


def _dense(name: str, value: StoredTensor, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor) and value.dtype == dtype:
        return value
    if dtype == E4M3:
        return _float32(value).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
    made = value.dense(dtype) if isinstance(value, Quantized) else value.to(dtype)
    if dtype is torch.float16 and not made.isfinite().all():
        largest = float(_float32(value).abs().max())
        raise ConfigurationError(f"{name} has values up to {largest:g}, too large for fp16; accepted: bf16, fp32")
    return made


def _scaled(name: str, value: StoredTensor) -> Piece:
    """A matrix in eight bits and its scale, one for the whole: what ComfyUI reads."""
    scale_name = name.removesuffix("weight") + "scale_weight"
    layout = {name: (E4M3, value.shape), scale_name: (torch.float32, Size())}
    return Piece(layout, partial(_with_scale, name, scale_name, value))


def _with_scale(name: str, scale_name: str, value: StoredTensor) -> dict[str, Tensor]:
    if isinstance(value, Quantized) and _has_one_scale(value):
        return {name: value.parts["data"], scale_name: value.parts["scale"].float()}
    matrix = _float32(value)
    scale = torch.maximum(matrix.max(), -matrix.min()) / E4M3_MAX
    scale = torch.where(scale == 0, 1, scale)
    # clamped, because division may round beyond the largest value
    return {name: (matrix / scale).clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3), scale_name: scale}


def _has_one_scale(value: StoredTensor) -> bool:
    if isinstance(value, Tensor) or value.scheme != Scheme.FP8 or value.parts["data"].dtype != E4M3:
        return False
    return value.parts["scale"].ndim == 0 if "scale" in value.parts else False


def _float32(value: StoredTensor) -> Tensor:
    return value.dense(torch.float32) if isinstance(value, Quantized) else value.float()
