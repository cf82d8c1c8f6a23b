"""4-bit weights as bitsandbytes publishes them, to `Quantized`.

A weight X is several tensors: `X` with the packed values, `X.absmax`, `X.quant_map` and, as JSON in bytes,
`X.quant_state.bitsandbytes__nf4`; if the scales are quantised too ("double quantisation"), also `X.nested_absmax` and
`X.nested_quant_map`. The scales are dequantised here: they are only a thirty-second of the values, and would cost time
in each step.

Source: bitsandbytes 0.50.2, functional.py, `QuantState`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.errors import CheckpointError
from hidream.formats.comfy_scales import first_names, object_in
from hidream.formats.quantized import Quantized, Scheme, nf4_pairs

STATE = ".quant_state.bitsandbytes__"
BLOCKS = tuple(2**i for i in range(5, 13))
PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


def fold(tensors: Mapping[str, Tensor]) -> dict[str, Tensor | Quantized]:
    """Put each 4-bit weight's tensors together; the others, and files without such weights, stay as they are.

    Raises CheckpointError on another type than NF4, and when a part is missing or does not fit.
    """
    states = {key.partition(STATE)[0]: key for key in tensors if STATE in key}
    parts = {key: part for key in tensors for part in PARTS if key.endswith(part)}
    for what, names in (
        ("have a state, but no values", states.keys() - tensors.keys()),
        (f"lack their state (`{STATE}nf4`)", {key.removesuffix(part) for key, part in parts.items()} - states.keys()),
        (
            "are in 8 bits (LLM.int8), which is not supported",
            {key.removesuffix(".SCB") for key in tensors if key.endswith(".SCB")},
        ),
    ):
        if names:
            raise CheckpointError(
                f"{len(names)} weights of bitsandbytes {what}: {first_names(names)}; accepted: complete NF4 files"
            )
    folded = parts.keys() | set(states.values())
    return {
        key: _weight(key, states[key], tensors) if key in states else tensor
        for key, tensor in tensors.items()
        if key not in folded
    }


def _weight(name: str, state_key: str, tensors: Mapping[str, Tensor]) -> Quantized:
    kind = state_key.partition(STATE)[2]
    if kind != Scheme.NF4:
        raise CheckpointError(f"{name} is quantised to {kind!r} by bitsandbytes; accepted: nf4")
    try:
        state = object_in(tensors[state_key])
        shape = _shape(state["shape"])
        scale = _scales(name, state, tensors)
        data = _blocks(tensors[name], _block(state["blocksize"]), scale.numel(), shape)
        pairs = nf4_pairs(_code(tensors, name))
    except KeyError as error:
        raise CheckpointError(
            f"the bitsandbytes weight {name} lacks {error.args[0]}; accepted: complete NF4 files"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"the bitsandbytes weight {name} is damaged: {error}; accepted: complete NF4 files"
        ) from error
    except (RuntimeError, TypeError, IndexError, ArithmeticError) as error:
        raise CheckpointError(f"the bitsandbytes weight {name} is damaged; accepted: complete NF4 files") from error
    return Quantized(Scheme.NF4, {"data": data, "scale": scale[:, None], "pairs": pairs}, shape)


def _blocks(packed: Tensor, block: int, count: int, shape: torch.Size) -> Tensor:
    """Packed values, two in a byte, as [count, block / 2]: a view, unless the last block is cut (never in HiDream)."""
    data = packed.flatten().view(torch.uint8)
    if data.numel() != -(-shape.numel() // 2) or count != -(-shape.numel() // block):
        raise ValueError(f"{data.numel()} bytes in {count} blocks of {block} are not a matrix of shape {list(shape)}")
    cut = count * block // 2 - data.numel()
    return (F.pad(data, (0, cut)) if cut else data).view(count, block // 2)


def _scales(name: str, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the largest value of each block, float32 [n]."""
    absmax = tensors[name + ".absmax"].flatten()
    if "nested_offset" not in state and absmax.is_floating_point():
        return _finite(tensors, name + ".absmax").flatten().float()
    block, nested = _block(state["nested_blocksize"]), _finite(tensors, name + ".nested_absmax").flatten()
    if nested.numel() != -(-absmax.numel() // block) or absmax.dtype is not torch.uint8:
        raise ValueError(f"{nested.numel()} scales of scales are not those of {absmax.numel()} in blocks of {block}")
    outer = nested.float().repeat_interleave(block)[: absmax.numel()]
    scale = _finite(tensors, name + ".nested_quant_map")[absmax.int()] * outer + float(state["nested_offset"])
    if not bool(scale.isfinite().all()):
        raise ValueError("its scales are not finite")
    return scale.float()


def _shape(stated: object) -> torch.Size:
    if not isinstance(stated, list) or not all(type(size) is int and 0 < size < 2**31 for size in stated):
        raise ValueError(f"its shape is {stated!r:.100}")
    return torch.Size(stated)


def _block(stated: object) -> int:
    """Values in a block: bitsandbytes has powers of two from 32 to 4096."""
    if type(stated) is not int or stated not in BLOCKS:
        raise ValueError(f"its blocks have {stated!r:.100} values, not {', '.join(map(str, BLOCKS))}")
    return stated


def _code(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    code = _finite(tensors, name + ".quant_map").flatten()
    if code.numel() != 16:
        raise ValueError(f"its code has {code.numel()} values, not 16")
    return code


def _finite(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if not tensors[name].is_floating_point() or not bool(tensors[name].float().isfinite().all()):
        raise ValueError(f"{name} is not finite")
    return tensors[name]
