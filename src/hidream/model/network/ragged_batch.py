"""The ragged batch: the requests of one step as one sequence of rows, and where each request's rows are.

Shapes: S segments, T rows (the tokens of all segments), N image tokens and L text tokens of a segment, D width,
H heads, K head dim.

A *segment* is one prompt's image and text: a request has one, or two with guidance. Linear layers and experts work on
rows and know no segments, so that their number of calls depends on the tokens, not on the requests. Only attention
stays within a segment, and each segment has its own modulation. Nothing is padded: segments of equal shape form a
*shape group*, a view [S, N, D] of its rows, so that a batch of equal shapes is computed like an ordinary batch. To
bring equal shapes together, the rows have an order of their own, the *batch order*.

Python code knows the shape groups, and torch.compile would make a new graph for each mix of requests. So an *indexed*
batch also has tensors with the same content. Blocks that use only these are one graph for all mixes. Each of the two is
the other's reference implementation.

Knows no weights and no time. A `RaggedBatch` serves as long as the same requests step together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.model.network.attention import Rope, attend
from hidream.model.network.linear import NO_ADAPTERS, NO_DELTAS, LoraDeltas, RowAdapters


class Conditioning(NamedTuple):
    """What every step needs of a request's prompt and shape; B segments of equal shape."""

    txt: Tensor  # [B, 2L, D]
    block_txt: Tensor  # [blocks, B, L, D], normalised
    pooled: Tensor  # [B, D]
    rope: Rope  # of (img, txt), [N + 2L, 1, K/2]
    key_mask: Tensor | None  # [N, 1, 1]: 0 for the pad token, which is the last; None without padding
    bias: Tensor | None  # [N + 3L]: log(pad tokens) for the pad token
    deltas: LoraDeltas = NO_DELTAS  # of the request's LoRAs

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Image tokens, running text tokens and per-block text tokens of one segment."""
        text = self.txt.shape[1]
        return self.rope.cos.shape[0] - text, text, self.block_txt.shape[2]


class ShapeGroup(NamedTuple):
    """Segments of equal shape, which are neighbours in the batch."""

    segments: int
    img: int  # tokens of each
    txt: int
    block_txt: int
    bias: Tensor | None  # [img + txt + fresh], added to the logits


class Rows(NamedTuple):
    """One stream of tokens."""

    groups: tuple[tuple[int, int], ...]  # segments, and tokens of each
    adapters: RowAdapters
    segment: Tensor | None  # of each row, [T], if the batch is indexed
    shape: Tensor | None  # likewise `groups` as a tensor on the CPU, [groups + 2, 2]; ends with zeros

    def split(self, x: Tensor) -> list[Tensor]:
        """Rows x [T, ...] to each shape group's view [S, N, ...]."""
        return _views(x, self.groups)

    def each(self, function: Callable[..., Tensor], x: Tensor, *tables: Tensor) -> Tensor:
        """Apply `function` to every shape group of x [T, D] with its part of each table [S, D], as [S, N, D]."""
        if self.segment is not None:
            return function(x, *(table[self.segment] for table in tables))
        parts = self.split(x)
        if len(parts) == 1:
            return function(parts[0], *(table[:, None] for table in tables)).flatten(0, 1)
        counts = [segments for segments, _ in self.groups]
        cut = zip(*(table[:, None].split(counts) for table in tables), strict=True)
        return join([function(part, *own) for part, own in zip(parts, cut, strict=True)])

    def add(self, x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
        """Sum of x [T, D] and gate [S, D]·change [T, D]."""
        if self.segment is not None:
            return torch.addcmul(x, gate[self.segment], change)
        parts = zip(self.split(x), gate[:, None].split([s for s, _ in self.groups]), self.split(change), strict=True)
        return join([torch.addcmul(*part) for part in parts])


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """The conditionings of one step's requests, as rows; shape groups in the order of their first request."""

    batch_order: tuple[int, ...]  # the numbers of the requests, in the order of their rows
    segments: tuple[int, ...]  # of each of them
    groups: tuple[ShapeGroup, ...]
    img: Rows
    txt: Rows
    block_txt: Rows
    both: Rows  # (img, txt) of each segment
    txt_tokens: Tensor  # of txt, [T, D]
    block_txt_tokens: Tensor  # of block_txt, [blocks, T, D]
    rope_img: Rope
    rope_both: Rope
    key_mask: Tensor | None  # of img, [T, 1, 1]
    key_mask_both: Tensor | None
    image_rows: Tensor | None  # where both has the rows of img, if the batch is indexed
    bias_rows: Tensor | None  # all shape groups' biases, concatenated, if the batch is indexed and any has one

    @classmethod
    def of(cls, conditionings: Sequence[Conditioning], *, indexed: bool = False) -> RaggedBatch:
        """Batch these requests."""
        kinds = [(*c.tokens, c.bias is not None) for c in conditionings]
        batch_order = sorted(range(len(kinds)), key=lambda i: (kinds.index(kinds[i]), i))
        cs = [conditionings[i] for i in batch_order]
        groups = tuple(
            _group([conditionings[i] for i in members]) for _, members in groupby(batch_order, key=lambda i: kinds[i])
        )
        ropes = [c.rope for c in cs for _ in range(c.txt.shape[0])]
        img_ropes = [Rope(*(table[: c.tokens[0]] for table in c.rope)) for c in cs for _ in range(c.txt.shape[0])]
        masked = any(c.key_mask is not None for c in cs)
        return cls(
            batch_order=tuple(batch_order),
            segments=tuple(c.txt.shape[0] for c in cs),
            groups=groups,
            img=_rows(groups, cs, lambda group: group.img, indexed),
            txt=_rows(groups, cs, lambda group: group.txt, indexed),
            block_txt=_rows(groups, cs, lambda group: group.block_txt, indexed),
            both=_rows(groups, cs, lambda group: group.img + group.txt, indexed),
            txt_tokens=join([c.txt for c in cs]),
            block_txt_tokens=join([c.block_txt for c in cs], dim=1),
            rope_img=_ropes(img_ropes),
            rope_both=_ropes(ropes),
            key_mask=_masks(cs, text=False) if masked else None,
            key_mask_both=_masks(cs, text=True) if masked else None,
            image_rows=_image_rows(groups, cs[0].txt.device) if indexed else None,
            bias_rows=_biases(groups, cs[0].txt)
            if indexed and any(group.bias is not None for group in groups)
            else None,
        )

    def modulation(self, tables: Sequence[Tensor]) -> Tensor:
        """Bring the requests' tables [B, M] of one step from their own order into batch order: [S, M]."""
        return torch.cat([tables[i] for i in self.batch_order]) if len(tables) > 1 else tables[0]

    def join_streams(self, img: Tensor, txt: Tensor) -> Tensor:
        """Rows of img and txt to rows of both."""
        pairs = zip(self.img.split(img), self.txt.split(txt), strict=True)
        return join([torch.cat(pair, dim=1) for pair in pairs])

    def images(self, both: Tensor) -> Tensor:
        """Rows of both [T, ...] to those of img."""
        if self.image_rows is not None:
            return both[self.image_rows]
        return join([part[:, : group.img] for part, group in zip(self.both.split(both), self.groups, strict=True)])

    def in_batch_order(self, images: Sequence[Tensor]) -> Tensor:
        """Bring image tokens [B, N, ...] of each request from their own order to rows of img; pad tokens are zeros."""
        groups = [group for group in self.groups for _ in range(group.segments)]
        padded, segment = [], 0
        for i, segments in zip(self.batch_order, self.segments, strict=True):
            pads = groups[segment].img - images[i].shape[1]
            padded.append(F.pad(images[i], (0, 0, 0, pads)) if pads else images[i])
            segment += segments
        return join(padded)

    def unbatch(self, img: Tensor) -> list[Tensor]:
        """Bring rows of img back to image tokens [B, N, ...] of each request, in the requests' own order."""
        segments = [segment for part in self.img.split(img) for segment in part]
        requests: dict[int, Tensor] = {}
        for i, count in zip(self.batch_order, self.segments, strict=True):
            own, segments = segments[:count], segments[count:]
            requests[i] = torch.stack(own)
        return [requests[i] for i in range(len(requests))]

    def attend_within_segments(
        self,
        q: Sequence[Tensor],
        k: Sequence[Tensor],
        v: Sequence[Tensor],
        queries: Sequence[Rows],
        keys: Sequence[Rows],
    ) -> list[Tensor]:
        """Attend within each segment; each tensor [T, H, K] is a stream of `queries` or `keys`. Returns those of q."""
        if self.image_rows is None:
            shapes = [[rows.groups for rows in streams] for streams in (queries, keys)]
            return attend_groups(q, k, v, shapes[0], shapes[1], [group.bias for group in self.groups])
        query_shapes, key_shapes = (
            [rows.shape for rows in streams if rows.shape is not None] for streams in (queries, keys)
        )
        return _attend_groups(list(q), list(k), list(v), query_shapes, key_shapes, self.bias_rows)


Shape = tuple[tuple[int, int], ...]
"""Segments and tokens of a stream's shape groups."""


def attend_groups(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    queries: Sequence[Shape],
    keys: Sequence[Shape],
    biases: Sequence[Tensor | None],
) -> list[Tensor]:
    """Attend within each segment of streams [T, H, K] with these shape groups; one call for each group."""
    outputs: list[tuple[Tensor, ...]] = []
    cut_q, cut_k, cut_v = (
        [_views(x, shape) for x, shape in zip(xs, shapes, strict=True)]
        for xs, shapes in ((q, queries), (k, keys), (v, keys))
    )
    for i, bias in enumerate(biases):
        joint = [torch.cat([stream[i] for stream in cut], dim=1) for cut in (cut_q, cut_k, cut_v)]
        mixed = attend(joint[0], joint[1], joint[2], bias)
        outputs.append(mixed.split([stream[i].shape[1] for stream in cut_q], dim=1))
    return [join(stream) for stream in zip(*outputs, strict=True)]


@torch.library.custom_op("hidream::attend_groups", mutates_args=())
def _attend_groups(
    q: list[Tensor], k: list[Tensor], v: list[Tensor], queries: list[Tensor], keys: list[Tensor], bias: Tensor | None
) -> list[Tensor]:
    """`attend_groups` for torch.compile: shapes are tensors on the CPU, so that they are no part of a graph."""
    query_shapes, key_shapes = ([tuple(map(tuple, s[:-2].tolist())) for s in shapes] for shapes in (queries, keys))
    tokens = [sum(count for _, count in group) for group in zip(*key_shapes, strict=True)]
    biases = [None] * len(tokens) if bias is None else bias.split(tokens)
    # what a custom operator returns may not share memory
    return [stream.clone() for stream in attend_groups(q, k, v, query_shapes, key_shapes, biases)]


@_attend_groups.register_fake
def _(
    q: list[Tensor], k: list[Tensor], v: list[Tensor], queries: list[Tensor], keys: list[Tensor], bias: Tensor | None
) -> list[Tensor]:
    return [torch.empty_like(stream) for stream in q]


def _views(x: Tensor, shape: Shape) -> list[Tensor]:
    """Rows x [T, ...] to each shape group's view [S, N, ...]."""
    parts = x.split([segments * tokens for segments, tokens in shape]) if len(shape) > 1 else (x,)
    return [part.unflatten(0, group) for part, group in zip(parts, shape, strict=True)]


def join(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Parts [S, N, ...], with S at `dim`, to rows [T, ...]; without a copy where there is only one."""
    rows = [part.flatten(dim, dim + 1) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim)


def _group(conditionings: Sequence[Conditioning]) -> ShapeGroup:
    first = conditionings[0]
    return ShapeGroup(sum(c.txt.shape[0] for c in conditionings), *first.tokens, first.bias)


def _rows(
    groups: Sequence[ShapeGroup],
    conditionings: Sequence[Conditioning],
    tokens: Callable[[ShapeGroup], int],
    indexed: bool,
) -> Rows:
    """Make one stream, with its row-to-adapter map."""
    each = [tokens(group) for group in groups for _ in range(group.segments)]  # of every segment
    stretches, start, segment = [], 0, 0
    for c in conditionings:
        end = start + sum(each[segment : segment + c.txt.shape[0]])
        if c.deltas:
            stretches.append((slice(start, end), c.deltas))
        start, segment = end, segment + c.txt.shape[0]
    alone = len(conditionings) == 1 and stretches
    adapters = ((slice(None), conditionings[0].deltas),) if alone else tuple(stretches) or NO_ADAPTERS
    shape = tuple((group.segments, tokens(group)) for group in groups)
    if not indexed:
        return Rows(shape, adapters, None, None)
    counts = torch.tensor(each)
    segments = torch.arange(len(each)).repeat_interleave(counts).to(conditionings[0].txt.device)
    return Rows(
        shape, adapters, segments, torch.tensor((*shape, (0, 0), (0, 0)))
    )  # sizes of 1 and 2 would be graphs of their own


def _ropes(ropes: Sequence[Rope]) -> Rope:
    return ropes[0] if len(ropes) == 1 else Rope(*(torch.cat(tables) for tables in zip(*ropes, strict=True)))


def _masks(conditionings: Sequence[Conditioning], text: bool) -> Tensor:
    """1 for every row, 0 for pad tokens."""
    parts = []
    for c in conditionings:
        img, txt, _ = c.tokens
        mask = c.txt.new_ones(img, 1, 1) if c.key_mask is None else c.key_mask
        whole = torch.cat((mask, mask.new_ones(txt, 1, 1))) if text else mask
        parts += [whole] * c.txt.shape[0]
    return torch.cat(parts)


def _image_rows(groups: Sequence[ShapeGroup], device: torch.device) -> Tensor:
    """Which rows of both are those of img."""
    own = [i < group.img for group in groups for _ in range(group.segments) for i in range(group.img + group.txt)]
    return torch.tensor(own).nonzero()[:, 0].to(device)


def _biases(groups: Sequence[ShapeGroup], like: Tensor) -> Tensor:
    """Concatenate all shape groups' biases, 0 where there is none."""
    return torch.cat(
        [
            like.new_zeros(group.img + group.txt + group.block_txt) if group.bias is None else group.bias
            for group in groups
        ]
    )
