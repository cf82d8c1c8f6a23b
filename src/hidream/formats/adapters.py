"""What a LoRA file holds for one layer: the tensors of its parts to an adapter, of low rank, LoKr or LoHa.

Shapes: I inputs and O outputs of the layer, R rank; ⊗ is the Kronecker product, ⊙ multiplies value by value.

Knows the parts by name, whatever the keys were (`lora_file.py`), and each trainer's rule for the strength. Every
adapter is checked here, once: parts that belong together, matrices of one rank, finite values.
Source: LyCORIS 3 (modules/lokr.py, loha.py), peft 0.21.2 (tuners/lora, lokr, loha).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hidream.errors import CheckpointError

HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
COMPLETE = [
    {"down", "up"},
    *(w1 | w2 for w1 in ({"w1"}, {"w1_a", "w1_b"}) for w2 in ({"w2"}, {"w2_a", "w2_b"}, {"w2_a", "w2_b", "t2"})),
    {*HADAMARD},
    {*HADAMARD, "hada_t1", "hada_t2"},
]
"""The parts that make an adapter, beside alpha and DoRA's magnitude."""
ACCEPTED_PARTS = "accepted: all parts of a LoRA, a LoKr or a LoHa"
SCALED_BY_PEFT = ("LOKR", "LOHA")
"""PEFT's kinds whose scale is alpha over rank of its configuration, whatever shapes the matrices have."""


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """ΔW = scale · up · down."""

    down: Tensor  # [R, I]
    up: Tensor  # [O, R]
    scale: float
    magnitude: Tensor | None = None  # of DoRA: [O, 1] of the rows of W + ΔW, or [1, I] of its columns

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.up.shape[0], self.down.shape[1]

    def delta(self) -> Tensor:
        """ΔW [O, I], float32."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker:
    """LoKr: ΔW = scale · (left ⊗ right)."""

    left: Tensor  # [O1, I1]
    right: Tensor  # [O2, I2], with O = O1·O2 and I = I1·I2
    scale: float
    magnitude: Tensor | None = None  # as in LowRank

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.left.shape[0] * self.right.shape[0], self.left.shape[1] * self.right.shape[1]

    def delta(self) -> Tensor:
        """ΔW [O, I], float32."""
        return self.scale * torch.kron(self.left.float(), self.right.float())


@dataclass(frozen=True, slots=True, eq=False)
class Hadamard:
    """LoHa: ΔW = scale · (up_1 · down_1) ⊙ (up_2 · down_2)."""

    down_1: Tensor  # [R1, I]
    up_1: Tensor  # [O, R1]
    down_2: Tensor  # [R2, I]
    up_2: Tensor  # [O, R2]
    scale: float
    magnitude: Tensor | None = None  # as in LowRank

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.up_1.shape[0], self.down_1.shape[1]

    def delta(self) -> Tensor:
        """ΔW [O, I], float32."""
        first, second = self.up_1.float() @ self.down_1.float(), self.up_2.float() @ self.down_2.float()
        return self.scale * first * second


Adapter = LowRank | Kronecker | Hadamard


def adapter(key: str, layer: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Adapter:
    """Make the adapter of a layer, whose key has its name after a prefix, of its parts.

    `settings` is PEFT's configuration, by its names, or empty.

    Raises CheckpointError when parts are missing, do not fit together or are no matrices of finite floats.
    """
    matrices = {name: _matrix(key, name, tensor) for name, tensor in parts.items() if name != "alpha"}
    magnitude = matrices.pop("magnitude", None)
    if matrices.keys() not in COMPLETE:
        raise CheckpointError(
            f"the LoRA's layer {key} is not complete: it has only {', '.join(parts)}; {ACCEPTED_PARTS}"
        )
    if "down" in matrices:
        down, up = matrices["down"], matrices["up"]
        _chain(key, up, down)
        return LowRank(down, up, _scale(key, layer, parts, settings, down.shape[0]), magnitude)
    if "hada_w1_a" in matrices:
        scale = _scale(key, layer, parts, settings, matrices["hada_w1_b"].shape[0])
        return _hadamard(key, matrices, scale, magnitude)
    left, left_rank = _factor(key, matrices, "w1")
    right, right_rank = _factor(key, matrices, "w2")
    return Kronecker(left, right, _scale(key, layer, parts, settings, right_rank or left_rank), magnitude)


def tensors_of(holder: object) -> list[Tensor]:
    """The tensors among the fields of a dataclass, such as an adapter."""
    assert hasattr(holder, "__dataclass_fields__"), "what has tensors is a dataclass"
    values = [getattr(holder, field.name) for field in fields(holder)]  # type: ignore[arg-type]
    return [value for value in values if isinstance(value, Tensor)]


def _hadamard(key: str, matrices: Mapping[str, Tensor], scale: float, magnitude: Tensor | None) -> Hadamard:
    """Both low-rank products of a LoHa, which must have the same shape."""
    factors: list[Tensor] = []
    for side in ("1", "2"):
        up, down = matrices[f"hada_w{side}_a"], matrices[f"hada_w{side}_b"]
        if "hada_t1" in matrices:
            up = _multiplied(key, _tucker(up, matrices[f"hada_t{side}"]))
        _chain(key, up, down)
        factors += [down, up]
    down_1, up_1, down_2, up_2 = factors
    if (up_1.shape[0], down_1.shape[1]) != (up_2.shape[0], down_2.shape[1]):
        shapes = " and ".join(f"[{up.shape[0]}, {down.shape[1]}]" for up, down in ((up_1, down_1), (up_2, down_2)))
        raise CheckpointError(f"the LoRA's layer {key} is made of products of shapes {shapes}; accepted: of one shape")
    return Hadamard(down_1, up_1, down_2, up_2, scale, magnitude)


def _factor(key: str, matrices: Mapping[str, Tensor], side: str) -> tuple[Tensor, int | None]:
    """One side of a Kronecker product, small enough to be multiplied out, and the rank that it was stored with."""
    if side in matrices:
        return matrices[side], None
    factors = [matrices[f"{side}_a"], matrices[f"{side}_b"]]
    if side == "w2" and "t2" in matrices:
        factors = [*_tucker(factors[0], matrices["t2"]), factors[1]]
    return _multiplied(key, factors), factors[-1].shape[0]


def _tucker(first: Tensor, core: Tensor) -> list[Tensor]:
    """The factors of a Tucker decomposition whose first, [R, O], lies the other way round."""
    return [first.mT, core]


def _multiplied(key: str, factors: list[Tensor]) -> Tensor:
    """The product of matrices, float32."""
    _chain(key, *factors)
    product: Tensor = torch.linalg.multi_dot([factor.float() for factor in factors])
    if not product.isfinite().all():
        raise CheckpointError(f"the LoRA's layer {key} has factors whose product is not finite in float32")
    return product


def _scale(key: str, layer: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any], rank: int | None) -> float:
    """Alpha over rank; where both sides of a Kronecker product are whole there is no rank, and LyCORIS takes 1."""
    scale = 1.0
    if "alpha" in parts and rank:
        scale = _alpha(key, parts["alpha"]) / rank
    elif settings.get("peft_type") in SCALED_BY_PEFT:
        scale = _pattern(settings, "alpha", layer) / _pattern(settings, "rank", layer)
    elif "lora_alpha" in settings and rank:
        scale = _pattern(settings, "alpha", layer) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise CheckpointError(f"the LoRA's layer {key} has the scale {scale}; accepted: a finite alpha")
    return scale


def _alpha(key: str, alpha: Tensor) -> float:
    if alpha.numel() != 1 or alpha.is_complex():
        shown = f"of type {alpha.dtype} and shape {list(alpha.shape)}"
        raise CheckpointError(f"the LoRA's layer {key} has an alpha {shown}; accepted: one number")
    return float(alpha)


def _pattern(settings: Mapping[str, Any], name: str, layer: str) -> float:
    """PEFT's rank or alpha of a layer (peft 0.21.2, utils/other.py, get_pattern_key)."""
    patterns: Mapping[str, object] = settings.get(f"{name}_pattern") or {}
    default = settings.get("r") if name == "rank" else settings.get("lora_alpha", settings.get("alpha"))
    try:
        value = next((v for pattern, v in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer)), default)
    except (AttributeError, re.error) as error:
        shown = f"the {name}_pattern {patterns!r:.100}"
        raise CheckpointError(f"PEFT's configuration of the LoRA has {shown}, which cannot be read: {error}") from error
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(
            f"PEFT's configuration of the LoRA gives {layer} the {name} {value!r:.100}; accepted: a number"
        )
    return float(value)


def _matrix(key: str, part: str, tensor: Tensor) -> Tensor:
    """A part as a matrix, whatever axes of length 1 a trainer gave it; a magnitude [O] as [O, 1]."""
    if tensor.is_floating_point() and tensor.itemsize == 1:
        tensor = tensor.float()  # float8 cannot be asked whether it is finite
    if tensor.ndim > 2:
        tensor = tensor.flatten(1)
    if tensor.ndim == 1 and part == "magnitude":
        tensor = tensor[:, None]
    problem = (
        f"the shape {list(tensor.shape)}"
        if tensor.ndim != 2 or not tensor.numel()
        else f"the type {tensor.dtype}"
        if not tensor.is_floating_point()
        else "values that are not finite"
        if not tensor.isfinite().all()
        else None
    )
    if problem:
        raise CheckpointError(f"the LoRA's layer {key} has {problem} in {part}; accepted: matrices of finite floats")
    return tensor


def _chain(key: str, *factors: Tensor) -> None:
    """Check that matrices can be multiplied."""
    if any(a.shape[1] != b.shape[0] for a, b in pairwise(factors)):
        shapes = " and ".join(str(list(factor.shape)) for factor in factors)
        raise CheckpointError(f"the LoRA's layer {key} has parts of shapes {shapes}; accepted: parts of one rank")
