"""LoRA: a file's adapters to changes of a model's linear layers.

Shapes: I inputs, O outputs, R rank; ⊙ multiplies rows or columns.

    low rank     ΔW = scale·up·down
    Kronecker    ΔW = scale·(left ⊗ right), never built: (left ⊗ right)·x = left·X·rightᵀ with x as a matrix X
    DoRA         W' = gain ⊙ (W + ΔW), with gain = magnitude / norm of the rows (or columns) of W + ΔW

With the weight w that a request gives a LoRA, w·(W' − W)·x is added to W·x: 0 is no LoRA, 1 the LoRA as trained, and
several LoRAs are the sum of what each adds alone. That is PEFT's answer for low rank and Kronecker; for DoRA it is
ComfyUI's `strength`, since PEFT at weight 0 would still apply the magnitude. The norm is of W + ΔW, as in training with
PEFT, LyCORIS and OneTrainer, on the axis that the magnitude's shape tells.

Changes belong to a request and are made from weights that stay as they are, quantised or not (`linear.py`). Knows no
files (`formats/lora_file.py`) and no requests.
Source: arXiv 2106.09685, 2402.09353 (equation 5), 2309.14859 (section 3.3); peft 0.21.2, tuners/lora/dora.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.errors import CheckpointError, InvalidInput
from hidream.formats.lora_file import ACCEPTED, Adapter, LoraFile, LowRank, bare, read_lora, some
from hidream.model.linear import Change, Changes, Linear
from hidream.model.moe import Gate
from hidream.model.transformer import Transformer

Layers = Mapping[str, Linear | Gate]
"""What a LoRA can change, by published name."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a LoRA does to one layer."""

    layer: Linear | Gate
    adapter: Adapter
    gain: Tensor | None  # of DoRA: [O, 1] or [1, I], float32


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """A LoRA that fits a model."""

    name: str
    parts: Mapping[str, Part]  # by published name
    report: str  # how much of the file it is


def load_lora(path: Path, transformer: Transformer) -> Lora:
    """Read a LoRA for this transformer. Raises CheckpointError, see `read_lora` and `match`."""
    return match(read_lora(path), layers(transformer))


def changes(loras: Sequence[tuple[Lora, float]], device: torch.device, dtype: torch.dtype) -> Changes:
    """Make what LoRAs with weights add to each layer, for `Transformer.condition`; may serve many requests.

    Raises InvalidInput for a weight that is not finite.
    """
    made: dict[str, tuple[Change, ...]] = {}
    for lora, weight in loras:
        if not math.isfinite(weight):
            raise InvalidInput(f"the weight of the LoRA {lora.name} is {weight}; accepted: a finite number")
        for name, part in lora.parts.items() if weight else ():
            made[name] = (*made.get(name, ()), _change(part, weight, device, dtype))
    return made


def layers(transformer: Transformer) -> Layers:
    """Everything that a LoRA can change."""
    return {m.published: m for m in transformer.modules() if isinstance(m, Linear | Gate)}


def match(file: LoraFile, layers: Layers) -> Lora:
    """Find the layers that a file changes.

    Raises CheckpointError when there are none, when one has another shape, or when a name says more than one.
    """
    found: dict[str, Part] = {}
    missing = []
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
            f"the LoRA {file.name} matches no layer of this model: it changes {some(missing)}; "
            f"accepted: layers such as {example}; {ACCEPTED}"
        )
    report = f"{file.name} ({file.format}): {len(found)} of {len(file.adapters)} layers matched"
    unmatched = [f"not in this model: {some(missing)}"] if missing else []
    return Lora(file.name, found, "; ".join((report, *unmatched, *file.notes)))


@dataclass(frozen=True, slots=True, eq=False)
class LowRankChange:
    """up·down·x, with scale and weight in `up`."""

    down: Tensor  # [R, I]
    up: Tensor  # [O, R]

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return F.linear(F.linear(x, self.down), self.up)


@dataclass(frozen=True, slots=True, eq=False)
class KroneckerChange:
    """(left ⊗ right)·x, with scale and weight in `left`."""

    left: Tensor  # [O1, I1]
    right: Tensor  # [O2, I2]

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        rows = F.linear(x.unflatten(-1, (-1, self.right.shape[1])), self.right)  # [..., I1, I2] to [..., I1, O2]
        return F.linear(rows.mT, self.left).mT.flatten(-2)  # [..., O2, I1] to [..., O2, O1] to [..., O]


@dataclass(frozen=True, slots=True, eq=False)
class RowDora:
    """w·(gain ⊙ (W + ΔW) − W)·x for a gain of each output."""

    inner: LowRankChange | KroneckerChange  # ΔW
    gain: Tensor  # w·gain [O]
    more: Tensor  # w·(gain − 1) [O]

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return torch.addcmul(self.more * product, self.gain, self.inner(x, product))


@dataclass(frozen=True, slots=True, eq=False)
class ColumnDora:
    """The same for a gain of each input, which takes a second product with the layer's weight."""

    inner: LowRankChange | KroneckerChange  # ΔW
    gain: Tensor  # w·gain [I]
    more: Tensor  # w·(gain − 1) [I]
    layer: Linear | Gate

    def __call__(self, x: Tensor, product: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return F.linear(self.more * x, _dense(self.layer, x.dtype)) + self.inner(self.gain * x, product)


def _change(part: Part, weight: float, device: torch.device, dtype: torch.dtype) -> Change:
    if part.gain is None:
        return _product(part.adapter, weight, device, dtype)
    gain = part.gain.flatten().to(device)
    gains = ((weight * gain).to(dtype), (weight * (gain - 1)).to(dtype))
    inner = _product(part.adapter, 1.0, device, dtype)
    if part.gain.shape[1] == 1:
        return RowDora(inner, *gains)
    return ColumnDora(inner, *gains, part.layer)


def _product(
    adapter: Adapter, weight: float, device: torch.device, dtype: torch.dtype
) -> LowRankChange | KroneckerChange:
    """ΔW·x times the weight; the factor is in one of the matrices, multiplied before they are rounded to `dtype`."""
    factor = weight * adapter.scale
    if isinstance(adapter, LowRank):
        return LowRankChange(adapter.down.to(device, dtype), (factor * adapter.up.to(device).float()).to(dtype))
    return KroneckerChange((factor * adapter.left.to(device).float()).to(dtype), adapter.right.to(device, dtype))


def _part(lora: str, name: str, layer: Linear | Gate, adapter: Adapter) -> Part:
    shape = (layer.out_features, layer.in_features) if isinstance(layer, Linear) else tuple(layer.weight.shape)
    if adapter.shape != shape:
        raise CheckpointError(
            f"the LoRA {lora} is made for another model: it has {list(adapter.shape)} for {name}, "
            f"which is {list(shape)} (outputs, inputs)"
        )
    return Part(layer, adapter, _gain(name, layer, adapter))


@torch.no_grad()
def _gain(name: str, layer: Linear | Gate, adapter: Adapter) -> Tensor | None:
    """DoRA's magnitude over the norm of W + ΔW; a row or column of zeros stays one."""
    magnitude = adapter.magnitude
    if magnitude is None:
        return None
    outputs, inputs = adapter.shape
    if magnitude.shape not in ((outputs, 1), (1, inputs)):
        accepted = f"accepted: [{outputs}], [{outputs}, 1] or [1, {inputs}]"
        raise CheckpointError(f"the LoRA's magnitude of {name} has the shape {list(magnitude.shape)}; {accepted}")
    base = _dense(layer, torch.float32)
    norm = (base + adapter.delta().to(base.device)).norm(dim=1 if magnitude.shape[1] == 1 else 0).view_as(magnitude)
    return torch.where(norm > 0, magnitude.to(norm) / norm, 1)


def _dense(layer: Linear | Gate, dtype: torch.dtype) -> Tensor:
    return layer.dense(dtype) if isinstance(layer, Linear) else layer.weight.to(dtype)


def _resolve(key: str, layers: Layers, names: Mapping[str, list[str]]) -> str | None:
    """The published name of a file's layer; None if this model has none of that name."""
    name = bare(key)
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
