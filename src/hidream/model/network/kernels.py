"""How the network computes: one frozen value, chosen once, which every layer is constructed with.

`choose` is a pure function of the device, the compute type, how the weights are stored, and what was measured of the
machine. It knows no modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch

from hidream.model.network import matmul
from hidream.model.network.matmul import Matmul


class Experts(StrEnum):
    """How the routed experts of a block are computed; `moe.py` has the functions.

    GROUPED: tokens sorted by expert, one grouped matrix product; fixed shapes, no host sync.
    PER_EXPERT: a loop over the experts, each with its own rows; for a CPU. Within a compiled graph, which may not wait
        for the rows' numbers, it is GROUPED.
    DENSE: every expert on every token, the reference implementation.
    """

    GROUPED = "grouped"
    PER_EXPERT = "per expert"
    DENSE = "dense"


@dataclass(frozen=True, slots=True)
class Kernels:
    """How every layer of a transformer multiplies. The default suits training on any device."""

    onednn: bool = False  # oneDNN's matrix products, SwiGLU fused into them; for a CPU, without gradients
    experts: Experts = Experts.GROUPED
    fused: bool = False  # weights that share an input are in one tensor (`fused_weights.py`)
    prepacked: bool = False  # the blocks keep copies of their weights in oneDNN's layout
    compiled: bool = False  # torch.compile makes a graph of each kind of block

    def __post_init__(self) -> None:
        assert self.onednn or not self.prepacked, "only oneDNN's kernels read prepacked weights"
        assert not (self.compiled and self.prepacked), "a graph reads the weights, not their prepacked copies"

    @property
    def matmul(self) -> Matmul:
        """The function that multiplies rows with a weight."""
        return matmul.onednn if self.onednn else matmul.linear

    def keep_bits_in_batch(self, dtype: torch.dtype) -> bool:
        """Whether a request's result has the same bits, alone and in a batch with others, if the device is a CPU.

        Not with oneDNN's products in bfloat16: with AMX, the order in which it sums depends on the number of rows
        (docs/LOG.md).
        """
        return not (self.onednn and dtype is torch.bfloat16)


DEFAULT = Kernels()


@dataclass(frozen=True, slots=True)
class Weights:
    """What the choice depends on, of the weights that a transformer is given."""

    dense: bool  # the blocks' matrices are on the device as plain tensors of the compute type
    mapped: bool  # and some of them are the pages of a file, which to fuse would be to copy
    small: bool  # all matrices are plain, and copies of them take little of the machine's memory


def choose(device: str, dtype: torch.dtype, weights: Weights, *, onednn: bool, compiled: bool = False) -> Kernels:
    """Choose how to compute on a device ("cpu", "cuda", "mps") in a type; `onednn` is whether it is available."""
    on_cpu = device == "cpu"
    return Kernels(
        onednn=on_cpu and onednn,
        experts=Experts.PER_EXPERT if on_cpu else Experts.GROUPED,
        fused=weights.dense and not (on_cpu and weights.mapped),
        prepacked=on_cpu and onednn and weights.small and dtype is torch.float32 and not compiled,
        compiled=compiled,
    )
