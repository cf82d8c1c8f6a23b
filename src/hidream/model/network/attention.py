"""Joint attention of image and text tokens, and the rotary positions of the image.

Shapes: T rows, S segments, N query tokens and M key tokens of each, D width, H heads, K head dim (D = H·K).

Knows no blocks, modulation or residuals. Text tokens stand at position (0, 0, 0), where the rotation is the identity,
so that only image tokens need one. Parameter names are the published ones (`_t` is the text side of a double block).
Source: HiDream-ai/HiDream-I1 @9b42dd6, models/attention.py and attention_processor.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hidream.model.network.fused_weights import fuse
from hidream.model.network.kernels import DEFAULT, Kernels
from hidream.model.network.linear import NO_ADAPTERS, Linear, RowAdapters, with_deltas
from hidream.model.network.matmul import prepacked_copy

ROPE_THETA = 10_000.0
RMS_EPS = 1e-5


class Rope(NamedTuple):
    """Cosine and sine of each token's angles, each [T, 1, K/2], float32."""

    cos: Tensor
    sin: Tensor


def rope_table(grid: tuple[int, int], text_tokens: int, axes: Sequence[int], device: torch.device) -> Rope:
    """Angles of an image of `grid` = (rows, columns) of tokens, followed by `text_tokens` at the origin.

    The axes are (0, row, column); angles are computed in float64, as in the reference. T = rows·columns + text_tokens.
    """
    rows, columns = grid
    positions = torch.zeros(rows, columns, 3, dtype=torch.float64)
    positions[..., 1] = torch.arange(rows)[:, None]
    positions[..., 2] = torch.arange(columns)
    angles = [
        positions[..., axis, None] / ROPE_THETA ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        for axis, width in enumerate(axes)
    ]
    image = torch.cat(angles, dim=-1).flatten(0, 1)  # [N, K/2]
    table = F.pad(image, (0, 0, 0, text_tokens))[:, None]  # [T, 1, K/2]
    return Rope(table.cos().float().to(device), table.sin().float().to(device))


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate neighbouring pairs of channels of x [T, H, K] by the rope's angles, in float32."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # [T, H, K/2] each
    turned = torch.stack((a * rope.cos - b * rope.sin, a * rope.sin + b * rope.cos), dim=-1)
    return turned.flatten(-2).type_as(x)


class RMSNorm(nn.RMSNorm):
    """Normalises in the type of its input; its weight has another while it is trained, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] to [T, D]."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Projection(NamedTuple):
    """The six modules of one side of an attention, image or text."""

    q: Linear
    k: Linear
    v: Linear
    out: Linear
    q_norm: RMSNorm
    k_norm: RMSNorm


class Attention(nn.Module):
    """Projections of one block's attention, for the image side and, in a double block, for the text side."""

    def __init__(self, dim: int, heads: int, kernels: Kernels = DEFAULT, *, double: bool) -> None:
        super().__init__()
        self.heads, self.matmul = heads, kernels.matmul
        self.sides = ("", "_t") if double else ("",)
        for side in self.sides:
            for name in ("to_q", "to_k", "to_v", "to_out"):
                self.add_module(name + side, Linear(dim, dim, matmul=kernels.matmul))
            for name in ("q_rms_norm", "k_rms_norm"):
                self.add_module(name + side, RMSNorm(dim, eps=RMS_EPS))
        self.fused: dict[str, tuple[Tensor, Tensor]] = {}  # side to weight [3D, D] and bias [3D] of q, k and v
        self.prepacked: dict[tuple[str, int], Tensor] = {}  # side and number of last matrices to their prepacked copy

    def side(self, side: str) -> Projection:
        """Modules of one side: "" image, "_t" text."""
        names = ("to_q", "to_k", "to_v", "to_out", "q_rms_norm", "k_rms_norm")
        return Projection(*(getattr(self, name + side) for name in names))

    def fuse(self) -> None:
        """Fuse q, k and v of each side."""
        for side in self.sides:
            p = self.side(side)
            weight = fuse([p.q.weight, p.k.weight, p.v.weight])
            bias = fuse([p.q.bias, p.k.bias, p.v.bias])
            self.fused[side] = (weight, bias)

    def prepack(self) -> None:
        """Keep prepacked copies of the fused weights: of q, k and v, and of k and v alone."""
        parts = {(side, n): w[-n * w.shape[1] :] for side, (w, _) in self.fused.items() for n in (2, 3)}
        self.prepacked = {key: prepacked_copy(weight) for key, weight in parts.items()}

    def qkv(self, x: Tensor, side: str = "", adapters: RowAdapters = NO_ADAPTERS) -> tuple[Tensor, Tensor, Tensor]:
        """Project x [T, D] to q, k and v, each [T, H, K], q and k normalised over the whole width."""
        p = self.side(side)
        q, k, v = self._project(x, side, (p.q, p.k, p.v), adapters)
        return self._split(p.q_norm(q)), self._split(p.k_norm(k)), self._split(v)

    def kv(self, x: Tensor, side: str = "", adapters: RowAdapters = NO_ADAPTERS) -> tuple[Tensor, Tensor]:
        """Project x [T, D] to k and v only, for tokens that are attended to but do not attend."""
        p = self.side(side)
        k, v = self._project(x, side, (p.k, p.v), adapters)
        return self._split(p.k_norm(k)), self._split(v)

    def q(self, x: Tensor, adapters: RowAdapters = NO_ADAPTERS) -> Tensor:
        """Project x [T, D] to q [T, H, K] only."""
        p = self.side("")
        return self._split(p.q_norm(p.q(x, adapters)))

    def out(self, x: Tensor, side: str = "", adapters: RowAdapters = NO_ADAPTERS) -> Tensor:
        """Bring attended heads x [T, H, K] back to [T, D]."""
        return self.side(side).out(x.flatten(-2), adapters)

    def _project(self, x: Tensor, side: str, layers: tuple[Linear, ...], adapters: RowAdapters) -> list[Tensor]:
        """Multiply x with each of `layers`, the last ones of q, k, v: in one product where they are fused."""
        if side not in self.fused:
            return [layer(x, adapters) for layer in layers]
        weight, bias = (whole[-len(layers) * layers[0].out_features :] for whole in self.fused[side])
        weight = self.prepacked.get((side, len(layers)), weight)
        outputs = self.matmul(x, weight, bias).chunk(len(layers), dim=-1)
        pairs = zip(layers, outputs, strict=True)
        return [with_deltas(layer.published, x, output, layer.bias, adapters) for layer, output in pairs]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # [T, H, K]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Scaled dot-product attention of q [S, N, H, K] to k, v [S, M, H, K]; `bias` [M] is added to all logits."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None if bias is None else bias[None, None, None, :].expand(1, 1, q.shape[2], -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
