"""The adapter of one layer in a LoRA file, made from the tensors of its parts: low rank, LoKr or LoHa.

Shapes: I inputs and O outputs of the layer, R rank; ⊗ is the Kronecker product, ⊙ multiplies value by value.

Knows the names of the parts, but not the keys of the file (`lora_file.py`), and each trainer's rule for the strength.
Every adapter is checked here, once: its parts belong together, its matrices have one rank, its values are finite.
`adapter_spec` derives from the shapes alone what an adapter is made for, before anything is read or multiplied: factors
of a few kilobytes may have a product of gigabytes.
Source: LyCORIS 3 (modules/lokr.py, loha.py), peft 0.21.2 (tuners/lora, lokr, loha).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor

from hidream.errors import CheckpointError
from hidream.formats.peft_settings import PeftSettings

HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
COMPLETE = [
    {"down", "up"},
    *(w1 | w2 for w1 in ({"w1"}, {"w1_a", "w1_b"}) for w2 in ({"w2"}, {"w2_a", "w2_b"}, {"w2_a", "w2_b", "t2"})),
    {*HADAMARD},
    {*HADAMARD, "hada_t1", "hada_t2"},
]
"""The parts that make an adapter, beside alpha and DoRA's magnitude."""
ACCEPTED_PARTS = "accepted: all parts of a LoRA, a LoKr or a LoHa"
ACCEPTED_MATRICES = "accepted: matrices of finite floats"
SCALED_BY_PEFT = ("LOKR", "LOHA")
"""PEFT's kinds whose scale is alpha over rank of its configuration, whatever shapes the matrices have."""
LAYER_MAX_VALUES = 2**28
"""Of a layer that an adapter may be made for, whatever the model; the published one's largest has 2²⁶."""

Shape = Sequence[int]


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


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """The size of an adapter, known before its tensors are read."""

    shape: tuple[int, int]  # (O, I) of the layer that it is made for
    values: int  # that it will hold


def adapter_spec(key: str, shapes: Mapping[str, Shape]) -> AdapterSpec:
    """Derive the adapter of a layer from the shapes of its parts.

    Raises CheckpointError when parts are missing, have no two dimensions or do not fit together, when one of them is of
    a higher rank than its layer has inputs or outputs, and when a product of them would be larger than the layer.
    """
    flat = {name: _flat(key, name, shape) for name, shape in shapes.items() if name != "alpha"}
    magnitude = flat.pop("magnitude", (0, 0))
    if flat.keys() not in COMPLETE:
        raise CheckpointError(
            f"the LoRA's layer {key} is incomplete: it has only {', '.join(shapes)}; {ACCEPTED_PARTS}"
        )
    if "down" in flat:
        factors = [_chained(key, flat["up"], flat["down"])]
        shape, held = factors[0], [flat["up"], flat["down"]]
    elif "hada_w1_a" in flat:
        sides = [_low_rank_sides(key, flat, side) for side in ("1", "2")]
        first, second = (_chained(key, *side) for side in sides)
        if first != second:
            raise CheckpointError(
                f"the LoRA's layer {key} multiplies products of shapes {list(first)} and {list(second)}; "
                "accepted: equal shapes"
            )
        shape, held = first, [part for side in sides for part in side]
    else:
        held = [_chained(key, *_factors(flat, side)) for side in ("w1", "w2")]
        shape = math.prod(each[0] for each in held), math.prod(each[1] for each in held)
    _check_size(key, shape, held)
    return AdapterSpec(shape, sum(map(math.prod, held)) + 2 * math.prod(magnitude))


def adapter(key: str, layer: str, parts: Mapping[str, Tensor], settings: PeftSettings) -> Adapter:
    """Make the adapter of a layer, whose key has its name after a prefix, of its parts.

    Raises CheckpointError as `adapter_spec` does, and when the parts are no matrices of finite floats.
    """
    adapter_spec(key, {name: tensor.shape for name, tensor in parts.items()})
    matrices = {name: _matrix(key, name, tensor) for name, tensor in parts.items() if name != "alpha"}
    magnitude = matrices.pop("magnitude", None)
    if "down" in matrices:
        down, up = matrices["down"], matrices["up"]
        return LowRank(down, up, _scale(key, layer, parts, settings, down.shape[0]), magnitude)
    if "hada_w1_a" in matrices:
        scale = _scale(key, layer, parts, settings, matrices["hada_w1_b"].shape[0])
        return _hadamard(key, matrices, scale, magnitude)
    left, left_rank = _factor(key, matrices, "w1")
    right, right_rank = _factor(key, matrices, "w2")
    return Kronecker(left, right, _scale(key, layer, parts, settings, right_rank or left_rank), magnitude)


def tensors_of(holder: object) -> list[Tensor]:
    """The tensors among the fields of a dataclass, such as an adapter."""
    assert hasattr(holder, "__dataclass_fields__"), "the holder of tensors is a dataclass"
    values = [getattr(holder, field.name) for field in fields(holder)]  # type: ignore[arg-type]
    return [value for value in values if isinstance(value, Tensor)]


def _low_rank_sides(key: str, flat: Mapping[str, tuple[int, int]], side: str) -> list[tuple[int, int]]:
    """Shapes of the factors that one low-rank product of a LoHa is held as."""
    up, down = flat[f"hada_w{side}_a"], flat[f"hada_w{side}_b"]
    return [_chained(key, up[::-1], flat[f"hada_t{side}"]) if "hada_t1" in flat else up, down]


def _factors(flat: Mapping[str, tuple[int, int]], side: str) -> list[tuple[int, int]]:
    """Shapes of the factors of one side of a Kronecker product, in their order."""
    if side in flat:
        return [flat[side]]
    first, last = flat[f"{side}_a"], flat[f"{side}_b"]
    return [first[::-1], flat["t2"], last] if side == "w2" and "t2" in flat else [first, last]


def _flat(key: str, part: str, shape: Shape) -> tuple[int, int]:
    """The shape of a part as a matrix, as `_matrix` makes it."""
    rows, *others = (*shape, 1) if len(shape) == 1 and part == "magnitude" else shape or (0,)
    flat = rows, math.prod(others)
    if not others or 0 in flat:
        raise CheckpointError(f"the LoRA's layer {key} has the shape {list(shape)} in {part}; {ACCEPTED_MATRICES}")
    return flat


def _chained(key: str, *shapes: tuple[int, int]) -> tuple[int, int]:
    """The shape of a product of matrices."""
    if any(a[1] != b[0] for a, b in pairwise(shapes)):
        shown = " and ".join(str(list(shape)) for shape in shapes)
        raise CheckpointError(f"the LoRA's layer {key} has parts of shapes {shown}; accepted: parts of one rank")
    return shapes[0][0], shapes[-1][1]


def _check_size(key: str, shape: tuple[int, int], held: Sequence[tuple[int, int]]) -> None:
    """Refuse what would hold more than its layer justifies: a matrix of rank R with R·(I + O) values among others."""
    if math.prod(shape) > LAYER_MAX_VALUES:
        raise CheckpointError(
            f"the LoRA's layer {key} is made for a layer of shape {list(shape)} (outputs, inputs); "
            f"accepted: at most {LAYER_MAX_VALUES:,} values"
        )
    if (widest := max(max(each) for each in held)) > max(shape):
        raise CheckpointError(
            f"the LoRA's layer {key} has the rank {widest:,}; "
            f"accepted: at most the larger side of its layer {list(shape)}"
        )


def _hadamard(key: str, matrices: Mapping[str, Tensor], scale: float, magnitude: Tensor | None) -> Hadamard:
    """Both low-rank products of a LoHa."""
    factors: list[Tensor] = []
    for side in ("1", "2"):
        up, down = matrices[f"hada_w{side}_a"], matrices[f"hada_w{side}_b"]
        if "hada_t1" in matrices:
            up = _multiplied(key, [up.mT, matrices[f"hada_t{side}"]])
        factors += [down, up]
    down_1, up_1, down_2, up_2 = factors
    return Hadamard(down_1, up_1, down_2, up_2, scale, magnitude)


def _factor(key: str, matrices: Mapping[str, Tensor], side: str) -> tuple[Tensor, int | None]:
    """One side of a Kronecker product, small enough to be multiplied out, and the rank that it was stored with."""
    if side in matrices:
        return matrices[side], None
    factors = [matrices[f"{side}_a"], matrices[f"{side}_b"]]
    if side == "w2" and "t2" in matrices:
        factors = [factors[0].mT, matrices["t2"], factors[1]]
    return _multiplied(key, factors), factors[-1].shape[0]


def _multiplied(key: str, factors: list[Tensor]) -> Tensor:
    """The product of matrices, float32."""
    product: Tensor = torch.linalg.multi_dot([factor.float() for factor in factors])
    if not product.isfinite().all():
        raise CheckpointError(f"the LoRA's layer {key} has factors whose product is not finite in float32")
    return product


def _scale(key: str, layer: str, parts: Mapping[str, Tensor], settings: PeftSettings, rank: int | None) -> float:
    """Alpha over rank; where both sides of a Kronecker product are whole there is no rank, and LyCORIS takes 1."""
    scale = 1.0
    if "alpha" in parts and rank:
        scale = _alpha(key, parts["alpha"]) / rank
    elif settings.get("peft_type") in SCALED_BY_PEFT:
        scale = settings.alpha(layer) / settings.rank(layer)
    elif settings.states("lora_alpha") and rank:
        scale = settings.alpha(layer) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise CheckpointError(f"the LoRA's layer {key} has the scale {scale}; accepted: a finite alpha")
    return scale


def _alpha(key: str, alpha: Tensor) -> float:
    if alpha.numel() != 1 or alpha.is_complex():
        shown = f"of type {alpha.dtype} and shape {list(alpha.shape)}"
        raise CheckpointError(f"the LoRA's layer {key} has an alpha {shown}; accepted: one number")
    return float(alpha)


def _matrix(key: str, part: str, tensor: Tensor) -> Tensor:
    """A part as a matrix, whatever axes of length 1 a trainer gave it; a magnitude [O] as [O, 1]."""
    if tensor.is_floating_point() and tensor.itemsize == 1:
        tensor = tensor.float()  # torch has no isfinite for float8
    if tensor.ndim > 2:
        tensor = tensor.flatten(1)
    if tensor.ndim == 1 and part == "magnitude":
        tensor = tensor[:, None]
    problem = (
        f"the type {tensor.dtype}"
        if not tensor.is_floating_point()
        else "values that are not finite"
        if not tensor.isfinite().all()
        else None
    )
    if problem:
        raise CheckpointError(f"the LoRA's layer {key} has {problem} in {part}; {ACCEPTED_MATRICES}")
    return tensor
