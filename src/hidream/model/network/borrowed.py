"""The transformer with the weights of another program's, which go on belonging to it.

Shapes: B prompts, L text tokens of one encoder, T rows, I inputs, O outputs, E experts, D width.

ComfyUI keeps the weights of a model in modules of its own. Between two steps it moves, casts and patches them, and
others replace its layers to read quantised files. So nothing of a weight is kept here: each layer asks the other
program's layer of the same published name, when it computes. What remains ours is the forward pass: it leaves out what
the reference computes and discards, computes once per prompt what does not change from step to step, and uses the
matrix products of `matmul.py` where the other program can say what a layer multiplies with (`Lend`).

On a CPU, matrix products of few rows are faster with fused weights, and oneDNN's with a layout of their own. So a small
model is copied (`copy_of`), which takes a tenth of a second for nano, and the copy is compared with the weights before
each run (`is_copy`). Which products are faster depends on the CPU, and is measured (`onednn_is_faster`).

Knows nothing of ComfyUI, whose adapter is `comfyui/local/accelerate.py`. The plain version is the other program's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hidream.errors import CheckpointError
from hidream.model.network import matmul
from hidream.model.network.attention import RMSNorm
from hidream.model.network.config import TransformerConfig
from hidream.model.network.kernels import Experts, Kernels, Weights, choose
from hidream.model.network.linear import NO_ADAPTERS, Linear, RowAdapters
from hidream.model.network.matmul import Matmul
from hidream.model.network.moe import Gate, best
from hidream.model.network.ragged_batch import Conditioning, RaggedBatch
from hidream.model.network.transformer import Transformer

Lend = Callable[[nn.Module, torch.dtype], tuple[Tensor, Tensor | None]]
"""A layer of the other program, and the type of its input, to its weight [O, I] and bias [O] as they are now."""

ROWS, WIDTH, REPEATS = 256, 1024, 4
"""Matrix products that take milliseconds each."""
FASTER = 1.1
"""How many times faster oneDNN must be: on AMD's CPUs 1.2 were measured (`matmul.py`)."""
REMEMBERED = 4
"""Prompts whose conditioning is kept during a run: with guidance there are two, with areas of an image a few more."""


class _Linear(Linear):
    """Computes what the other program's layer does: by our product if it can be lent, else by calling the layer."""

    def __init__(self, layer: nn.Module, product: Matmul, lend: Lend | None) -> None:
        nn.Module.__init__(self)
        self.layer, self.matmul, self.lend = [layer], product, lend  # in a list: not a module of ours

    def forward(self, x: Tensor, adapters: RowAdapters = NO_ADAPTERS) -> Tensor:
        """[..., I] to [..., O]."""
        if self.lend is None:
            return self.layer[0](x)
        return self.matmul(x, *self.lend(self.layer[0], x.dtype))

    def operand(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in `dtype`."""
        assert self.lend is not None, "only lent weights are multiplied elsewhere"
        return self.lend(self.layer[0], dtype)[0]


class _Norm(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = [layer]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer[0](x).to(x.dtype)


class _Gate(nn.Module):
    def __init__(self, layer: nn.Module, gate: Gate) -> None:
        super().__init__()
        self.layer, self.active, self.matmul = [layer], gate.active, gate.matmul

    def forward(self, x: Tensor, adapters: RowAdapters = NO_ADAPTERS) -> tuple[Tensor, Tensor]:
        weight: Tensor = self.layer[0].weight  # type: ignore[assignment]
        return best(self.matmul(x, weight.to(x), None), self.active)


def borrow(config: TransformerConfig, layers: nn.Module, lend: Lend | None = None) -> Transformer:
    """Build a transformer that computes with `layers`, a module with the published names of HiDream-I1's.

    `lend` says what a linear layer multiplies with, on a CPU; without it, each layer is called, whatever it does.
    Raises CheckpointError where a layer is missing.
    """
    kernels = Kernels(onednn=lend is not None, experts=Experts.PER_EXPERT)
    with torch.device("meta"):
        transformer = Transformer(config, kernels)
    theirs = dict(layers.named_modules())
    for name, module in list(transformer.named_modules()):
        if isinstance(module, Linear | Gate | RMSNorm):
            transformer.set_submodule(name, _borrowed(module, _layer(theirs, name), lend))
    return transformer.eval().requires_grad_(False)


def _borrowed(module: Linear | Gate | RMSNorm, layer: nn.Module, lend: Lend | None) -> nn.Module:
    if isinstance(module, Linear):
        return _Linear(layer, module.matmul, lend)
    return _Gate(layer, module) if isinstance(module, Gate) else _Norm(layer)


def _layer(theirs: Mapping[str, nn.Module], name: str) -> nn.Module:
    layer = theirs.get(name)
    if layer is None or not hasattr(layer, "weight"):
        raise CheckpointError(f"the other program's model has no layer {name}; accepted: a HiDream-I1 transformer")
    return layer


@cache
@torch.inference_mode()
def onednn_is_faster(dtype: torch.dtype) -> bool:
    """Measure whether oneDNN multiplies clearly faster than torch's own products on this CPU: on AMD's it does.

    Measured once in a process, so that all that it decides computes alike, to the last bit.
    """
    if not matmul.onednn_available() or dtype not in matmul.ONEDNN_DTYPES:
        return False
    x, weight = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    best = dict.fromkeys((matmul.onednn, matmul.linear), math.inf)
    for _ in range(1 + REPEATS):  # interleaved; the first warms up
        for product in best:
            started = time.process_time()
            product(x, weight, None)
            best[product] = min(best[product], time.process_time() - started)
    return best[matmul.onednn] * FASTER < best[matmul.linear]


def copy_of(
    config: TransformerConfig, layers: nn.Module, lend: Lend, dtype: torch.dtype, *, onednn: bool
) -> Transformer:
    """Copy the weights, as they are now, into a transformer on the CPU that computes in `dtype`.

    Raises CheckpointError where a layer is missing.
    """
    kernels = choose("cpu", dtype, Weights(dense=True, mapped=False, small=True), onednn=onednn)
    with torch.device("meta"):
        transformer = Transformer(config, kernels)
    state = {name: weight.clone() for name, weight in _weights(transformer, layers, lend, dtype).items()}
    transformer.load_state_dict(state, assign=True)
    transformer.prepare_weights()
    return transformer.eval().requires_grad_(False)


def is_copy(transformer: Transformer, layers: nn.Module, lend: Lend) -> bool:
    """Whether a transformer of `copy_of` still has the weights of `layers`."""
    own = transformer.state_dict()
    dtype = own["x_embedder.proj.weight"].dtype
    theirs = _weights(transformer, layers, lend, dtype)
    return all(torch.equal(own[name], weight) for name, weight in theirs.items())


def size_of(layers: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of a copy in `dtype`."""
    return sum(parameter.numel() for parameter in layers.parameters()) * dtype.itemsize


def _weights(transformer: Transformer, layers: nn.Module, lend: Lend, dtype: torch.dtype) -> dict[str, Tensor]:
    """Borrow all weights that a transformer has, by their published names."""
    theirs, found = dict(layers.named_modules()), dict[str, Tensor]()
    for name, module in transformer.named_modules():
        if isinstance(module, Linear | Gate | RMSNorm):
            layer = _layer(theirs, name)
            weight, bias = lend(layer, dtype) if isinstance(module, Linear) else (layer.get_parameter("weight"), None)
            found[f"{name}.weight"] = weight.to(dtype)
            if bias is not None:
                found[f"{name}.bias"] = bias.to(dtype)
    return found


class _Known(NamedTuple):
    """What a prompt was, and what was computed of it."""

    grid: tuple[int, int]
    texts: tuple[Tensor, ...]
    conditioning: Conditioning
    batch: RaggedBatch


class BorrowedTransformer:
    """A borrowed transformer that remembers the conditioning of the prompts of one run.

    Call `forget` between two runs, and when weights change within one: what is remembered depends on them.
    """

    def __init__(self, transformer: Transformer) -> None:
        self.transformer = transformer
        self._known: list[_Known] = []  # the most recently used last

    def forget(self) -> None:
        """Forget all prompts, and free what was computed of them."""
        self._known.clear()

    def velocity(self, latent: Tensor, timestep: Tensor, t5: Tensor, llama: Tensor, pooled: Tensor) -> Tensor:
        """Velocity [B, C, H, W] of latent [B, C, H, W] at timestep [B]; the texts are those of `condition`."""
        patch = self.transformer.config.patch_size
        grid = (latent.shape[2] // patch, latent.shape[3] // patch)
        known = self._find(t5, llama, pooled, grid)
        modulation = self.transformer.modulation(timestep, known.conditioning)
        return self.transformer.velocity([latent], [modulation], known.batch)[0]

    def _find(self, t5: Tensor, llama: Tensor, pooled: Tensor, grid: tuple[int, int]) -> _Known:
        """Look a prompt up by its content: the other program makes new tensors for each step."""
        texts = (pooled, t5, llama)  # the small one first
        for i, known in enumerate(self._known):
            if known.grid == grid and all(map(_equal, known.texts, texts)):
                self._known.append(self._known.pop(i))
                return known
        conditioning = self.transformer.condition(t5, llama, pooled, grid)
        self._known = self._known[-REMEMBERED + 1 :]
        self._known.append(_Known(grid, texts, conditioning, self.transformer.batch([conditioning])))
        return self._known[-1]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype is b.dtype and a.device == b.device and torch.equal(a, b))
