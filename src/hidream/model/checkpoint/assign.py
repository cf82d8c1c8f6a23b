"""Gives a module on the meta device the tensors of a file: checked, moved, and in the requested weight format.

Knows modules and weight formats; neither files nor what the module computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Size, Tensor, nn

from hidream.errors import CheckpointError
from hidream.formats.quantized import Quantized, Scheme, StoredTensor, quantize
from hidream.model.memory.footprint import BITS
from hidream.model.network.linear import Linear
from hidream.types import WeightFormat

KEYS_SHOWN = 5
TOLERANCE = 1.1
"""A matrix that the file holds in about as few bits is not quantised again: Q8_0 of 8.5 bits passes for 8."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a module's tensors go, and in which type.

    `storage` is for the matrices of linear layers; all else is brought to `dtype`, in which everything is computed.
    `placed` says by the tensor's name where it lives if not on `device`; quantising is done on `device` all the same.
    Layers whose names begin with one of `unquantised` stay so, those that end with one of `float32` are kept in it.
    """

    device: torch.device
    dtype: torch.dtype
    storage: WeightFormat = WeightFormat.COMPUTE
    placed: Callable[[str], torch.device] | None = None
    unquantised: tuple[str, ...] = ()
    float32: tuple[str, ...] = ()

    def place(self, name: str) -> torch.device:
        """Return the device on which a tensor lives."""
        return self.placed(name) if self.placed else self.device


def assign(module: nn.Module, tensors: Mapping[str, StoredTensor], target: Target, where: Path) -> None:
    """Give `module` its tensors. Raises CheckpointError on a key, a shape or a type that does not fit.

    An `nn.Linear` whose matrix is not a tensor of the compute type becomes a `Linear`.
    """
    wanted = _wanted(module)
    _check(wanted, tensors, where)
    shared = _shared(module)
    for name in wanted:
        owner, _, leaf = name.rpartition(".")
        layer = module.get_submodule(owner)
        if isinstance(layer, nn.Linear) and leaf == "weight":
            _set_matrix(module, owner, layer, _matrix(owner, tensors[name], target), target.dtype)
            continue
        value = _dense(tensors[name], target.place(owner), target.dtype)
        kept = nn.Parameter(value, requires_grad=False) if leaf in layer._parameters else value
        for alias in shared.get(name, [name]):
            owner, _, leaf = alias.rpartition(".")
            setattr(module.get_submodule(owner), leaf, kept)


def resolve_stored(storage: WeightFormat | None, tensors: Mapping[str, StoredTensor]) -> WeightFormat:
    """The requested weight format, or else the file's own if it has fewer than 16 bits, or else the compute type."""
    small = any(isinstance(tensor, Quantized) or tensor.element_size() == 1 for tensor in tensors.values())
    return storage or (WeightFormat.STORED if small else WeightFormat.COMPUTE)


def _wanted(module: nn.Module) -> dict[str, Size]:
    """Shapes by name, shared parameters once, without buffers that no file holds."""
    persistent = module.state_dict().keys()
    buffers = {name: buffer.shape for name, buffer in module.named_buffers() if name in persistent}
    return {name: parameter.shape for name, parameter in module.named_parameters()} | buffers


def _shared(module: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter, by the first."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {aliases[0]: aliases for aliases in names.values()}


def _check(wanted: Mapping[str, Size], tensors: Mapping[str, StoredTensor], where: Path) -> None:
    common = wanted.keys() & tensors.keys()
    problems = [
        ("missing", wanted.keys() - tensors.keys()),
        ("unexpected", tensors.keys() - wanted.keys()),
        ("of another shape", {key for key in common if wanted[key] != tensors[key].shape}),
        ("of a type that is not a float", {key for key in common if not _is_float(tensors[key])}),
    ]
    texts = [f"{len(keys)} {what} ({_some(keys, wanted, tensors, what)})" for what, keys in problems if keys]
    if texts:
        raise CheckpointError(f"the weights in {where} do not fit their configuration: keys {'; '.join(texts)}")


def _some(keys: set[str], wanted: Mapping[str, Size], tensors: Mapping[str, StoredTensor], what: str) -> str:
    """The first few keys, with what is wrong of each."""
    shown = sorted(keys)[:KEYS_SHOWN]
    if what == "of another shape":
        shown = [f"{key}: {list(tensors[key].shape)}, accepted {list(wanted[key])}" for key in shown]
    elif what.startswith("of a type"):
        shown = [f"{key}: {_type(tensors[key])}" for key in shown]
    return ", ".join(shown) + ", …" * (len(keys) > KEYS_SHOWN)


def _is_float(tensor: StoredTensor) -> bool:
    return isinstance(tensor, Quantized) or tensor.dtype.is_floating_point


def _type(tensor: StoredTensor) -> str:
    return tensor.scheme if isinstance(tensor, Quantized) else str(tensor.dtype).removeprefix("torch.")


def _matrix(layer: str, value: StoredTensor, target: Target) -> StoredTensor:
    """The matrix of a linear layer on its device, in the requested weight format."""
    place = target.place(layer)
    if layer.endswith(target.float32) and target.float32:
        return _dense(value, place, torch.float32)
    if target.storage is WeightFormat.COMPUTE:
        return _dense(value, place, target.dtype)
    if target.storage is WeightFormat.STORED or _bits(value) <= BITS[target.storage] * TOLERANCE:
        return value.to(place)
    if layer.startswith(target.unquantised) and target.unquantised:
        return _dense(value, place, target.dtype)
    return quantize(_dense(value, target.device, target.dtype), Scheme(target.storage)).to(place)


def _bits(value: StoredTensor) -> float:
    return 8 * value.nbytes / value.shape.numel()


def _dense(value: StoredTensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    moved = value.to(device)
    return moved.dense(dtype) if isinstance(moved, Quantized) else moved.to(dtype)


def _set_matrix(module: nn.Module, name: str, layer: nn.Linear, weight: StoredTensor, dtype: torch.dtype) -> None:
    if isinstance(weight, Tensor) and (weight.dtype == dtype or isinstance(layer, Linear)):
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return
    if not isinstance(layer, Linear):
        plain, layer = layer, Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        layer.bias = plain.bias
        module.set_submodule(name, layer)
    if isinstance(weight, Tensor):  # not as a parameter: T5 turns its inputs into the type of one
        weight = Quantized(Scheme.FLOAT, {"data": weight}, weight.shape)
    layer.store(weight)
