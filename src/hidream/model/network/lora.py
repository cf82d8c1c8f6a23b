"""LoRA: a file's adapters to deltas of a model's linear layers.

Shapes: I inputs, O outputs, R rank; ⊗ is the Kronecker product, ⊙ multiplies value by value, or rows or columns.

    low rank     ΔW = scale·up·down
    LoKr         ΔW = scale·(left ⊗ right), never built: (left ⊗ right)·x = left·X·rightᵀ with x as a matrix X
    LoHa         ΔW = scale·(up_1·down_1) ⊙ (up_2·down_2), built for each product, or as low rank: `HadamardDelta`
    DoRA         W' = gain ⊙ (W + ΔW), with gain = magnitude / norm of the rows (or columns) of W + ΔW

With the weight w that a request gives a LoRA, w·(W' − W)·x is added to W·x: 0 is no LoRA, 1 the LoRA as trained, and
several LoRAs are the sum of what each adds alone. That is what PEFT does for low rank, LoKr and LoHa. For DoRA it is
ComfyUI's `strength`, since PEFT at weight 0 would still apply the magnitude. The norm is of W + ΔW, as in training with
PEFT, LyCORIS and OneTrainer, along the axis that the magnitude's shape gives.

Deltas belong to a request; the model's weights stay as they are, quantised or not (`linear.py`). A `Lora` is in host
memory; its deltas are copies on the device, which a request holds only while it is denoised. Knows no files
(`formats/lora_file.py`, `lora_folder.py`) and no requests.
Source: arXiv 2106.09685, 2402.09353 (equation 5), 2309.14859 (sections 3.2 and 3.3); peft 0.21.2, tuners/lora/dora.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.errors import CheckpointError, InvalidInput
from hidream.formats.adapters import Adapter, AdapterSpec, Hadamard, LowRank, tensors_of
from hidream.formats.lora_file import ACCEPTED, LoraFile, LoraFormat, Wants, first_keys, layer_name
from hidream.model.network.linear import Linear, LoraDelta, LoraDeltas
from hidream.model.network.moe import Gate
from hidream.model.network.transformer import Transformer

Layers = Mapping[str, Linear | Gate]
"""The layers that a LoRA can change, by published name."""
BETWEEN_MAX = 4
"""The most values of a token between both products of a LoKr, in multiples of the layer's inputs or outputs."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerAdapter:
    """A LoRA's adapter of one layer."""

    layer: Linear | Gate
    adapter: Adapter
    gain: Tensor | None  # of DoRA: [O, 1] or [1, I], float32, in host memory


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """A LoRA that fits a model, in host memory."""

    name: str
    format: LoraFormat
    parts: Mapping[str, LayerAdapter]  # by published name
    layers: int  # of the file, those among them that the model does not have
    notes: tuple[str, ...]  # what of the file is left out

    @property
    def report(self) -> str:
        """A sentence about how much of the file is used."""
        return "; ".join((f"{self.format}, {len(self.parts)} of {self.layers} layers matched", *self.notes))

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        holders = [holder for part in self.parts.values() for holder in (part, part.adapter)]
        return sum(tensor.nbytes for holder in holders for tensor in tensors_of(holder))


def deltas(loras: Sequence[tuple[Lora, float]], device: torch.device, dtype: torch.dtype) -> LoraDeltas:
    """Copy LoRAs with weights to the device: deltas for `Transformer.condition`; `checked_bytes` has checked them."""
    made: dict[str, tuple[LoraDelta, ...]] = {}
    for lora, weight in loras:
        for name, part in lora.parts.items() if weight else ():
            made[name] = (*made.get(name, ()), _delta(part, weight, device, dtype))
    return made


def checked_bytes(loras: Sequence[tuple[Lora, float]], device: torch.device, dtype: torch.dtype) -> int:
    """Return the bytes that the deltas of LoRAs with weights hold on the device.

    Makes the deltas there one at a time and keeps none, so that a request that waits holds none. Raises InvalidInput
    for a weight that is not finite, or with which a layer's values are not in `dtype`.
    """
    return sum(_checked_bytes(lora, weight, device, dtype) for lora, weight in loras)


def warnings(loras: Sequence[tuple[Lora, float]]) -> tuple[str, ...]:
    """Return a warning for each LoRA of which some layers are left out."""
    texts = [f"the LoRA {lora.name} is used in part: {'; '.join(lora.notes)}" for lora, w in loras if w and lora.notes]
    return tuple(dict.fromkeys(texts))


def layers(transformer: Transformer) -> Layers:
    """Return the layers that a LoRA can change."""
    return {m.published: m for m in transformer.modules() if isinstance(m, Linear | Gate)}


def wants(lora: str, layers: Layers) -> Wants:
    """Return which layers of a file to read: those of the model, whose shape is checked before they are made."""
    names = _by_underscores(layers)

    def wanted(key: str, spec: AdapterSpec) -> bool:
        name = _resolve(key, layers, names)
        if name is not None:
            _check_shape(lora, name, spec.shape, layers[name])
        return name is not None

    return wanted


def match(file: LoraFile, layers: Layers) -> Lora:
    """Find the layers that a file changes.

    Raises CheckpointError when there are none, when one has another shape, or when a name says more than one.
    """
    found: dict[str, LayerAdapter] = {}
    missing = [*file.others]
    names = _by_underscores(layers)
    for key, adapter in file.adapters.items():
        name = _resolve(key, layers, names)
        if name is None:
            missing.append(key)
        elif name in found:
            raise CheckpointError(f"the LoRA {file.name} changes {name} twice; {ACCEPTED}")
        else:
            found[name] = _part(file.name, name, layers[name], adapter)
    if not found:
        example = next(iter(layers))
        raise CheckpointError(
            f"the LoRA {file.name} matches no layer of this model: it changes {first_keys(missing)}; "
            f"accepted: layers such as {example}"
        )
    total = len(file.adapters) + len(file.others)
    unmatched = (
        [f"{len(missing)} of its {total} layers are not in this model ({first_keys(missing)})"] if missing else []
    )
    return Lora(file.name, file.format, found, total, (*unmatched, *file.notes))


@dataclass(frozen=True, slots=True, eq=False)
class LowRankDelta:
    """up·down·x, with scale and weight in `up`."""

    down: Tensor  # [R, I]
    up: Tensor  # [O, R]

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return F.linear(F.linear(x, self.down), self.up)


@dataclass(frozen=True, slots=True, eq=False)
class KroneckerDelta:
    """(left ⊗ right)·x, with scale and weight in `left`.

    Between both products there are I1·O2 values of a token, about as many as outputs where both sides are factored
    alike, as trainers do it. With O1 = I2 = 1 a file of a few kilobytes would have I·O of them for each token: then
    left is first, which leaves O1·I2, the square root of I·O at most.
    """

    left: Tensor  # [O1, I1]
    right: Tensor  # [O2, I2]

    @property
    def left_first(self) -> bool:
        """Whether `left` is multiplied first."""
        (o1, i1), (o2, i2) = self.left.shape, self.right.shape
        return i1 * o2 > BETWEEN_MAX * max(o1 * o2, i1 * i2)

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        if self.left_first:
            columns = F.linear(
                x.unflatten(-1, (-1, self.right.shape[1])).mT, self.left
            )  # [..., I2, I1] to [..., I2, O1]
            return F.linear(columns.mT, self.right).flatten(-2)  # [..., O1, I2] to [..., O1, O2] to [..., O]
        rows = F.linear(x.unflatten(-1, (-1, self.right.shape[1])), self.right)  # [..., I1, I2] to [..., I1, O2]
        return F.linear(rows.mT, self.left).mT.flatten(-2)  # [..., O2, I1] to [..., O2, O1] to [..., O]


@dataclass(frozen=True, slots=True, eq=False)
class HadamardDelta:
    """((up_1·down_1) ⊙ (up_2·down_2))·x, with scale and weight in `up_1`.

    Of two products of ranks R1 and R2, the product value by value has rank R1·R2: its factors are all columns of `up_1`
    times all of `up_2`, and all rows of `down_1` times all of `down_2` (Khatri-Rao). With these a token costs
    R1·R2·(I + O) products, with ΔW itself I·O: whichever is less is built, for each product anew. That is little beside
    the product itself, and kept for every layer it would be many times the LoRA, up to the size of the model.
    """

    down_1: Tensor  # [R1, I]
    up_1: Tensor  # [O, R1], float32
    down_2: Tensor  # [R2, I]
    up_2: Tensor  # [O, R2]

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        for matrix in self.matrices(x.dtype):
            x = F.linear(x, matrix)
        return x

    def matrices(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What inputs are multiplied with, one after the other: [R1·R2, I] and [O, R1·R2], or ΔW [O, I]."""
        down_1, down_2, up_1, up_2 = (m.float() for m in (self.down_1, self.down_2, self.up_1, self.up_2))
        rank, (outputs, _), (_, inputs) = len(down_1) * len(down_2), up_1.shape, down_1.shape
        if rank * (inputs + outputs) >= inputs * outputs:
            return (((up_1 @ down_1) * (up_2 @ down_2)).to(dtype),)
        down = (down_1[:, None] * down_2).flatten(0, 1)  # [R1, R2, I] to [R1·R2, I]
        up = (up_1[:, :, None] * up_2[:, None]).flatten(1)  # [O, R1, R2] to [O, R1·R2]
        return down.to(dtype), up.to(dtype)


PlainDelta = LowRankDelta | KroneckerDelta | HadamardDelta
"""ΔW·x times the weight, without a magnitude."""


@dataclass(frozen=True, slots=True, eq=False)
class RowDora:
    """w·(gain ⊙ (W + ΔW) − W)·x for a gain of each output."""

    inner: PlainDelta  # ΔW
    gain: Tensor  # w·gain [O]
    more: Tensor  # w·(gain − 1) [O]

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return torch.addcmul(self.more * product, self.gain, self.inner(x, product))


@dataclass(frozen=True, slots=True, eq=False)
class ColumnDora:
    """The same for a gain of each input, which takes a second product with the layer's weight."""

    inner: PlainDelta  # ΔW
    gain: Tensor  # w·gain [I]
    more: Tensor  # w·(gain − 1) [I]
    layer: Linear | Gate

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return F.linear(self.more * x, _dense(self.layer, x.dtype)) + self.inner(self.gain * x, product)


def _delta(
    part: LayerAdapter, weight: float, device: torch.device, dtype: torch.dtype
) -> PlainDelta | RowDora | ColumnDora:
    if part.gain is None:
        return _product(part.adapter, weight, device, dtype)
    gain = part.gain.flatten().to(device)
    gains = ((weight * gain).to(dtype), (weight * (gain - 1)).to(dtype))
    inner = _product(part.adapter, 1.0, device, dtype)
    if part.gain.shape[1] == 1:
        return RowDora(inner, *gains)
    return ColumnDora(inner, *gains, part.layer)


def _product(adapter: Adapter, weight: float, device: torch.device, dtype: torch.dtype) -> PlainDelta:
    """ΔW·x times the weight; the factor is in one of the matrices, multiplied before they are rounded to `dtype`."""

    def scaled(matrix: Tensor) -> Tensor:
        return weight * adapter.scale * matrix.to(device).float()

    if isinstance(adapter, LowRank):
        return LowRankDelta(adapter.down.to(device, dtype), scaled(adapter.up).to(dtype))
    if isinstance(adapter, Hadamard):
        down_1, down_2, up_2 = (matrix.to(device) for matrix in (adapter.down_1, adapter.down_2, adapter.up_2))
        return HadamardDelta(down_1, scaled(adapter.up_1), down_2, up_2)
    return KroneckerDelta(scaled(adapter.left).to(dtype), adapter.right.to(device, dtype))


def _checked_bytes(lora: Lora, weight: float, device: torch.device, dtype: torch.dtype) -> int:
    """Return the bytes of one LoRA's deltas; waits for the device once.

    Raises InvalidInput for a weight that is not finite, or if what the products are computed with is too large for
    `dtype`.
    """
    if not math.isfinite(weight):
        raise InvalidInput(f"the weight of the LoRA {lora.name} is {weight}; accepted: a finite number")
    if not weight:
        return 0
    nbytes, finite = 0, []
    for part in lora.parts.values():
        delta = _delta(part, weight, device, dtype)
        nbytes += _nbytes(delta)
        # the norm: where squares overflow, an RMSNorm makes zeros of what follows, and no value is infinite in the end
        finite.append(torch.stack([t.float().norm().isfinite() for t in _matrices(delta, dtype)]).all())
    for name, fits in zip(lora.parts, torch.stack(finite).tolist(), strict=True):
        if not fits:
            raise InvalidInput(
                f"loras gives {lora.name!r} the scale {weight:g}, with which its layer {name} is not finite in "
                f"{str(dtype).removeprefix('torch.')}; accepted: a smaller scale"
            )
    return nbytes


def _nbytes(delta: PlainDelta | RowDora | ColumnDora) -> int:
    """Bytes of a delta's tensors."""
    inner = _nbytes(delta.inner) if isinstance(delta, RowDora | ColumnDora) else 0
    return sum(tensor.nbytes for tensor in tensors_of(delta)) + inner


def _matrices(delta: PlainDelta | RowDora | ColumnDora, dtype: torch.dtype) -> list[Tensor]:
    if isinstance(delta, HadamardDelta):
        return list(delta.matrices(dtype))
    inner = _matrices(delta.inner, dtype) if isinstance(delta, RowDora | ColumnDora) else []
    return tensors_of(delta) + inner


def _part(lora: str, name: str, layer: Linear | Gate, adapter: Adapter) -> LayerAdapter:
    _check_shape(lora, name, adapter.shape, layer)
    return LayerAdapter(layer, adapter, _gain(name, layer, adapter))


def _check_shape(lora: str, name: str, adapted_shape: tuple[int, int], layer: Linear | Gate) -> None:
    shape = (layer.out_features, layer.in_features) if isinstance(layer, Linear) else tuple(layer.weight.shape)
    if adapted_shape != shape:
        raise CheckpointError(
            f"the LoRA {lora} is made for another model: it has {list(adapted_shape)} for {name}, "
            f"which is {list(shape)} (outputs, inputs)"
        )


@torch.no_grad()
def _gain(name: str, layer: Linear | Gate, adapter: Adapter) -> Tensor | None:
    """DoRA's magnitude over the norm of W + ΔW, in host memory as the magnitude; a row or column of zeros stays one."""
    magnitude = adapter.magnitude
    if magnitude is None:
        return None
    outputs, inputs = adapter.shape
    if magnitude.shape not in ((outputs, 1), (1, inputs)):
        accepted = f"accepted: [{outputs}], [{outputs}, 1] or [1, {inputs}]"
        raise CheckpointError(f"the LoRA's magnitude of {name} has the shape {list(magnitude.shape)}; {accepted}")
    base = _dense(layer, torch.float32)
    norm = (base + adapter.delta().to(base.device)).norm(dim=1 if magnitude.shape[1] == 1 else 0).view_as(magnitude)
    if not norm.isfinite().all():
        raise CheckpointError(f"the LoRA's layer {name} has a norm that is not finite; accepted: smaller values")
    return torch.where(norm > 0, magnitude.to(norm) / norm, 1).to(magnitude.device)


def _dense(layer: Linear | Gate, dtype: torch.dtype) -> Tensor:
    return layer.dense(dtype) if isinstance(layer, Linear) else layer.weight.to(dtype)


def _resolve(key: str, layers: Layers, names: Mapping[str, list[str]]) -> str | None:
    """The published name of a file's layer; None if this model has none of that name."""
    name = layer_name(key)
    if name in layers:
        return name
    candidates = names.get(name.replace(".", "_"), [])
    if len(candidates) > 1:
        raise CheckpointError(f"the LoRA's layer {key} may be {' or '.join(candidates)}; accepted: names with dots")
    return candidates[0] if candidates else None


def _by_underscores(layers: Layers) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name in layers:
        names.setdefault(name.replace(".", "_"), []).append(name)
    return names
