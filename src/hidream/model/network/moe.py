"""Feed-forward layers: SwiGLU, and the sparse mixture of experts with one shared expert.

Shapes: T tokens (rows of all requests), D width, F hidden width, E experts, A active experts per token.

Each token goes to its A best of E experts. Their outputs are weighted with the gate's probabilities, which are *not*
renormalised, and a shared expert's output is added. There are three implementations (`kernels.Experts`).
`grouped_experts` sorts the tokens by expert and multiplies each expert's rows once, with fixed shapes, no host sync and
a deterministic sum. `dense_experts` is its reference implementation: every expert on every token.
`MixtureOfExperts._per_expert` loops over the experts, each with as many rows as it has, for a CPU, where reading their
numbers costs nothing: no weights are concatenated (850 MB of a block of the published model in float32), and SwiGLU is
fused into each expert's matrix products (`matmul.py`).
Source: HiDream-ai/HiDream-I1 @9b42dd6, models/moe.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidream.model.network.fused_weights import fuse
from hidream.model.network.kernels import DEFAULT, Experts, Kernels
from hidream.model.network.linear import NO_ADAPTERS, Linear, RowAdapters, all_rows, with_deltas
from hidream.model.network.matmul import ONEDNN_DTYPES, onednn_swiglu

MULTIPLE_OF = 256
"""Hidden widths are rounded up to this (models/moe.py, FeedForwardSwiGLU)."""


class SwiGLU(nn.Module):
    """w2(silu(w1·x) * w3·x), without biases."""

    def __init__(self, dim: int, hidden: int, kernels: Kernels = DEFAULT) -> None:
        super().__init__()
        hidden = -(-int(2 * hidden / 3) // MULTIPLE_OF) * MULTIPLE_OF
        self.kernels = kernels
        self.w1 = Linear(dim, hidden, bias=False, matmul=kernels.matmul)
        self.w2 = Linear(hidden, dim, bias=False, matmul=kernels.matmul)
        self.w3 = Linear(dim, hidden, bias=False, matmul=kernels.matmul)
        self.fused: Tensor | None = None  # w1 over w3, [2F, D]

    def fuse(self) -> None:
        """Fuse w1 and w3."""
        self.fused = fuse([self.w1.weight, self.w3.weight])

    def forward(self, x: Tensor, adapters: RowAdapters = NO_ADAPTERS) -> Tensor:
        """[T, D] to [T, D]."""
        return self.w2(self._hidden(x, adapters), adapters)

    def _hidden(self, x: Tensor, adapters: RowAdapters) -> Tensor:
        if not self.kernels.onednn or x.dtype not in ONEDNN_DTYPES:
            return self._hidden_with_deltas(x, adapters)
        own = [
            (rows, deltas) for rows, deltas in adapters if self.w1.published in deltas or self.w3.published in deltas
        ]
        if len(own) == 1 and own[0][0] == slice(None):
            return self._hidden_with_deltas(x, adapters)
        hidden = onednn_swiglu(x, self.w1.operand(x.dtype), self.w3.operand(x.dtype))
        for rows, deltas in own:
            hidden[rows] = self._hidden_with_deltas(x[rows], all_rows(deltas))
        return hidden

    def _hidden_with_deltas(self, x: Tensor, adapters: RowAdapters) -> Tensor:
        if self.fused is None or self.kernels.onednn:
            return F.silu(self.w1(x, adapters)) * self.w3(x, adapters)
        gate, up = F.linear(x, self.fused).chunk(2, dim=-1)
        gate = with_deltas(self.w1.published, x, gate, None, adapters)
        return F.silu(gate) * with_deltas(self.w3.published, x, up, None, adapters)


class Gate(nn.Module):
    """Chooses the experts of each token."""

    published = ""  # the gate's name in the published checkpoints

    def __init__(self, dim: int, experts: int, active: int, kernels: Kernels = DEFAULT) -> None:
        super().__init__()
        self.active = active
        self.matmul = kernels.matmul
        self.weight = nn.Parameter(torch.randn(experts, dim) / dim**0.5)
        self.imbalance: Tensor | None = None  # of the last call, within `balance_losses`

    def forward(self, x: Tensor, adapters: RowAdapters = NO_ADAPTERS) -> tuple[Tensor, Tensor]:
        """Tokens [T, D] to the probabilities [T, A] and the numbers [T, A] of their best experts."""
        return best(with_deltas(self.published, x, self.matmul(x, self.weight, None), None, adapters), self.active)


def best(logits: Tensor, active: int) -> tuple[Tensor, Tensor]:
    """Turn a gate's logits [T, E] into the probabilities and the numbers of each token's best experts, [T, A] each."""
    probability, expert = logits.softmax(dim=-1).topk(active, dim=-1, sorted=False)
    return probability, expert


class MixtureOfExperts(nn.Module):
    """E routed experts of which A see each token, and one expert that sees all."""

    def __init__(self, dim: int, hidden: int, experts: int, active: int, kernels: Kernels = DEFAULT) -> None:
        super().__init__()
        self.kernels = kernels
        self.shared_experts = SwiGLU(dim, hidden // 2, kernels)
        self.experts = nn.ModuleList(SwiGLU(dim, hidden, kernels) for _ in range(experts))
        self.gate = Gate(dim, experts, active, kernels)
        self.fused: tuple[Tensor, Tensor] | None = None  # w1 over w3 [E, 2F, D], w2 [E, D, F]

    def fuse(self) -> None:
        """Fuse all routed experts' first and all their second matrices, and the shared expert's first."""
        self.shared_experts.fuse()
        first = fuse([w.weight for expert in self._routed() for w in (expert.w1, expert.w3)])
        second = fuse([expert.w2.weight for expert in self._routed()])
        self.fused = (
            first.unflatten(0, (len(self.experts), -1)),
            second.unflatten(0, (len(self.experts), -1)),
        )

    def forward(self, x: Tensor, adapters: RowAdapters = NO_ADAPTERS) -> Tensor:
        """[T, D] to [T, D]."""
        probability, expert = self.gate(x, adapters)
        if self.kernels.experts is Experts.PER_EXPERT and not torch.compiler.is_compiling():
            routed = self._per_expert(x, probability, expert, adapters)
        else:
            first, second = self.fused or self._stacked(x.dtype)
            compute = dense_experts if self.kernels.experts is Experts.DENSE else grouped_experts
            routed = compute(x, probability, expert, first, second, self._adjust(adapters))
        return routed + self.shared_experts(x, adapters)

    def _per_expert(self, x: Tensor, probability: Tensor, expert: Tensor, adapters: RowAdapters) -> Tensor:
        """Compute what `grouped_experts` does in a loop over the experts, each with its own layers."""
        active = expert.shape[1]
        choice = expert.flatten()  # [T·A]
        order = choice.argsort(stable=True)
        token = order // active
        counts = choice.bincount(minlength=len(self.experts)).tolist()
        parts = zip(self._routed(), x[token].split(counts), token.split(counts), strict=True)
        outputs = [routed(rows, _select_rows(own, adapters)) for routed, rows, own in parts if own.numel()]
        back = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=x.device))
        return weighted_sum(torch.cat(outputs), back, probability)

    def _stacked(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        first = [w.dense(dtype) for expert in self._routed() for w in (expert.w1, expert.w3)]
        second = [expert.w2.dense(dtype) for expert in self._routed()]
        return torch.cat(first).unflatten(0, (len(second), -1)), torch.stack(second)

    def _adjust(self, adapters: RowAdapters) -> Adjust | None:
        """Return a function that adds the requests' deltas of the routed experts to a product's rows, or None."""
        if not adapters:
            return None
        names = {w.published for expert in self._routed() for w in (expert.w1, expert.w2, expert.w3)}
        adapters = tuple((rows, deltas) for rows, deltas in adapters if not names.isdisjoint(deltas))
        if not adapters:
            return None

        def adjust(names: tuple[str, ...], x: Tensor, product: Tensor, owner: Tensor, token: Tensor) -> Tensor:
            parts = list(product.chunk(len(names), dim=-1))
            for i, name in enumerate(names):
                for e, expert in enumerate(self._routed()):
                    layer = cast(Linear, getattr(expert, name))
                    for rows, deltas in adapters:
                        with_delta = with_deltas(layer.published, x, parts[i], None, ((slice(None), deltas),))
                        here = (owner == e) & _is_within(token, rows)
                        parts[i] = torch.where(here[:, None], with_delta, parts[i])
            return torch.cat(parts, dim=-1)

        return adjust

    def _routed(self) -> list[SwiGLU]:
        return [cast(SwiGLU, expert) for expert in self.experts]


Adjust = Callable[[tuple[str, ...], Tensor, Tensor, Tensor, Tensor], Tensor]
"""(names of the layers, their input [R, I], their product [R, O], expert and token of each row [R]) to the product."""


def grouped_experts(
    x: Tensor, probability: Tensor, expert: Tensor, first: Tensor, second: Tensor, adjust: Adjust | None = None
) -> Tensor:
    """Σ_a probability·expert(x), each expert on its own tokens only.

    x [T, D]; probability, expert [T, A]; first [E, 2F, D] (w1 over w3), second [E, D, F]. Returns [T, D].
    """
    active, experts = expert.shape[1], first.shape[0]
    choice = expert.flatten()  # [T·A]
    order = choice.argsort(stable=True)
    ends = (choice[:, None] == torch.arange(experts, device=x.device)).sum(0).cumsum(0).to(torch.int32)  # [E]
    token = order // active
    rows = x[token]  # [T·A, D]
    hidden = grouped_mm(rows, first.mT, ends)
    if adjust:
        hidden = adjust(("w1", "w3"), rows, hidden, choice[order], token)
    hidden = _swish(hidden)
    rows = grouped_mm(hidden, second.mT, ends)
    if adjust:
        rows = adjust(("w2",), hidden, rows, choice[order], token)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=x.device))
    return weighted_sum(rows, back, probability)


def weighted_sum(outputs: Tensor, back: Tensor, probability: Tensor) -> Tensor:
    """Bring outputs [T·A, D], sorted by expert, back into the order of the tokens, and sum each token's: [T, D]."""
    return (outputs[back].unflatten(0, (-1, probability.shape[1])) * probability[..., None]).sum(1)


def dense_experts(
    x: Tensor, probability: Tensor, expert: Tensor, first: Tensor, second: Tensor, adjust: Adjust | None = None
) -> Tensor:
    """The reference implementation: every expert on every token, those not chosen weighted with 0."""
    weight = torch.zeros(x.shape[0], first.shape[0], dtype=x.dtype, device=x.device).scatter(1, expert, probability)
    outputs, token = [], torch.arange(x.shape[0], device=x.device)
    for e, (w13, w2) in enumerate(zip(first, second, strict=True)):
        owner = torch.full((x.shape[0],), e, device=x.device)
        hidden = x @ w13.mT
        hidden = _swish(adjust(("w1", "w3"), x, hidden, owner, token) if adjust else hidden)
        output = hidden @ w2.mT
        outputs.append(adjust(("w2",), hidden, output, owner, token) if adjust else output)
    return torch.stack(outputs, dim=-1).mul(weight[:, None, :]).sum(-1)


def grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each group of rows of x [R, I] with its own matrix of weight [E, I, O]; group e ends at row ends[e]."""
    if torch.is_autocast_enabled(x.device.type):  # which knows the linear layers, but not this product
        x, weight = (tensor.to(torch.get_autocast_dtype(x.device.type)) for tensor in (x, weight))
    if x.dtype is torch.bfloat16:
        return F.grouped_mm(x, weight, offs=ends)
    return _grouped_mm(x, weight, ends)


@torch.library.custom_op("hidream::grouped_mm", mutates_args=())
def _grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """PyTorch's own, for the types whose shape rule it lacks under torch.compile (2.13 knows bfloat16 only).

    Also x [I, R] with weight [R, O], where `ends` cuts both along R: the gradients of the groups' matrices, [E, I, O].
    """
    return F.grouped_mm(x, weight, offs=ends)


@_grouped_mm.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    groups = [ends.shape[0]] if weight.ndim == 2 else []
    return x.new_empty(*groups, x.shape[0], weight.shape[-1])


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ANN401 - torch's context
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
    x, weight, ends = ctx.saved_tensors
    grad = grad.contiguous()
    return _grouped_mm(grad, weight.mT, ends), _grouped_mm(x.mT, grad, ends), None


_grouped_mm.register_autograd(_gradients, setup_context=_save_for_backward)


@contextmanager
def balance_losses(model: nn.Module) -> Iterator[list[Tensor]]:
    """For training: collect the load-balancing loss of every gate's last call within; they are there at its end.

    E·Σ_e (share of the choices that fell on e)·(mean probability of e), at least about 1: 1 when all experts are used
    alike, and its gradient moves probability away from those that are used most (models/moe.py, MoEGate, its
    `aux_loss` over alpha).
    """
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    losses: list[Tensor] = []
    hooks = [gate.register_forward_hook(_note_imbalance) for gate in gates]
    try:
        yield losses
        losses += [gate.imbalance for gate in gates if gate.imbalance is not None]
    finally:
        for hook in hooks:
            hook.remove()
        for gate in gates:
            gate.imbalance = None


def _note_imbalance(gate: Gate, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    """Leave the loss at the gate itself: to grow a list would be a new graph for each gate, if blocks are compiled."""
    mean = F.linear(inputs[0], gate.weight).softmax(dim=-1).mean(0)
    share = F.one_hot(output[1].flatten(), mean.shape[0]).float().mean(0)
    gate.imbalance = mean.shape[0] * (share * mean).sum()


def _is_within(token: Tensor, rows: slice) -> Tensor:
    """Which tokens are in `rows`."""
    if rows == slice(None):
        return torch.ones_like(token, dtype=torch.bool)
    return (token >= rows.start) & (token < rows.stop)


def _select_rows(token: Tensor, adapters: RowAdapters) -> RowAdapters:
    """Map the rows of `adapters` to rows among some tokens, whose numbers [R] ascend."""
    found = []
    for rows, deltas in adapters:
        if rows == slice(None):
            found.append((rows, deltas))
            continue
        start, stop = torch.searchsorted(token, token.new_tensor([rows.start, rows.stop])).tolist()
        if start < stop:
            found.append((slice(start, stop), deltas))
    return tuple(found)


def _swish(x: Tensor) -> Tensor:
    """silu(first half) * second half of the last axis."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up
