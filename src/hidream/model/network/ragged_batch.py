"""Several requests as one sequence of rows: what one step multiplies at once, and where each request's rows are.

Shapes: S segments, T rows (the tokens of all segments), N image tokens and L text tokens of a segment, D width,
H heads, K head dim.

A *segment* is one prompt's image and text: a request has one, or two with guidance. Linear layers and experts see rows
and know no segments, so their number depends on the tokens, not on the requests. Only attention stays within a segment,
and a segment's modulation is its own. Nothing is padded: neighbours of equal shape form a *run*, which is a view [S, N,
D] of its rows, so that a batch of equal shapes is computed as one batch always was.

Python knows the runs, and torch.compile would make a new graph of each mix of requests. So an *indexed* layout also has
tensors that say the same, and blocks that look at nothing else are one graph for all mixes; the two ways are each
other's twins.

Knows no weights and no time; a `Packed` serves as long as the same requests step together.
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
from hidream.model.network.linear import NOWHERE, UNCHANGED, Changes, Spread


class Conditioning(NamedTuple):
    """What a request's prompt and shape give to every step; B segments of equal shape."""

    txt: Tensor  # [B, 2L, D]
    fresh: Tensor  # [blocks, B, L, D], normalised
    pooled: Tensor  # [B, D]
    rope: Rope  # of (img, txt), [N + 2L, 1, K/2]
    key_mask: Tensor | None  # [N, 1, 1]: 0 for the pad token, which is the last; None without padding
    bias: Tensor | None  # [N + 3L]: log(pad tokens) for the pad token
    changes: Changes = UNCHANGED  # what the request's LoRAs add to linear layers

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Image, text and fresh tokens of one segment."""
        text = self.txt.shape[1]
        return self.rope.cos.shape[0] - text, text, self.fresh.shape[2]


class Run(NamedTuple):
    """Neighbouring segments of equal shape."""

    segments: int
    img: int  # tokens of each
    txt: int
    fresh: int
    bias: Tensor | None  # [img + txt + fresh], added to the logits


class Rows(NamedTuple):
    """One stream of tokens."""

    runs: tuple[tuple[int, int], ...]  # segments, and tokens of each
    spread: Spread
    segment: Tensor | None  # of each row, [T], if the layout is indexed
    shape: Tensor | None  # `runs` as a tensor on the CPU, [runs + 2, 2], likewise; ends with zeros

    def split(self, x: Tensor) -> list[Tensor]:
        """Rows x [T, ...] to each run's view [S, N, ...]."""
        return _views(x, self.runs)

    def each(self, function: Callable[..., Tensor], x: Tensor, *tables: Tensor) -> Tensor:
        """Apply `function` to every run of x [T, D] with its segments' part of each table [S, D], as [S, N, D]."""
        if self.segment is not None:
            return function(x, *(table[self.segment] for table in tables))
        parts = self.split(x)
        if len(parts) == 1:
            return function(parts[0], *(table[:, None] for table in tables)).flatten(0, 1)
        counts = [segments for segments, _ in self.runs]
        cut = zip(*(table[:, None].split(counts) for table in tables), strict=True)
        return join([function(part, *own) for part, own in zip(parts, cut, strict=True)])

    def add(self, x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
        """Sum of x [T, D] and gate [S, D]·change [T, D]."""
        if self.segment is not None:
            return torch.addcmul(x, gate[self.segment], change)
        parts = zip(self.split(x), gate[:, None].split([s for s, _ in self.runs]), self.split(change), strict=True)
        return join([torch.addcmul(*part) for part in parts])


@dataclass(frozen=True, slots=True)
class Packed:
    """The conditionings of the requests of one step, as rows; runs in the order of their first request."""

    order: tuple[int, ...]  # the conditionings, as they stand in the rows
    segments: tuple[int, ...]  # how many each of them has
    runs: tuple[Run, ...]
    img: Rows
    txt: Rows
    fresh: Rows
    both: Rows  # (img, txt) of each segment
    text: Tensor  # of txt, [T, D]
    news: Tensor  # of fresh, [blocks, T, D]
    rope_img: Rope
    rope_both: Rope
    key_mask: Tensor | None  # of img, [T, 1, 1]
    key_mask_both: Tensor | None
    image_rows: Tensor | None  # where both has the rows of img, if the layout is indexed
    bias_rows: Tensor | None  # all runs' biases, one after the other, if the layout is indexed and any has one

    @classmethod
    def of(cls, conditionings: Sequence[Conditioning], *, indexed: bool = False) -> Packed:
        """Lay out the rows of these requests."""
        kinds = [(*c.tokens, c.bias is not None) for c in conditionings]
        order = sorted(range(len(kinds)), key=lambda i: (kinds.index(kinds[i]), i))
        cs = [conditionings[i] for i in order]
        runs = tuple(_run([conditionings[i] for i in group]) for _, group in groupby(order, key=lambda i: kinds[i]))
        ropes = [c.rope for c in cs for _ in range(c.txt.shape[0])]
        img_ropes = [Rope(*(table[: c.tokens[0]] for table in c.rope)) for c in cs for _ in range(c.txt.shape[0])]
        masked = any(c.key_mask is not None for c in cs)
        return cls(
            order=tuple(order),
            segments=tuple(c.txt.shape[0] for c in cs),
            runs=runs,
            img=_rows(runs, cs, lambda run: run.img, indexed),
            txt=_rows(runs, cs, lambda run: run.txt, indexed),
            fresh=_rows(runs, cs, lambda run: run.fresh, indexed),
            both=_rows(runs, cs, lambda run: run.img + run.txt, indexed),
            text=join([c.txt for c in cs]),
            news=join([c.fresh for c in cs], dim=1),
            rope_img=_ropes(img_ropes),
            rope_both=_ropes(ropes),
            key_mask=_masks(cs, text=False) if masked else None,
            key_mask_both=_masks(cs, text=True) if masked else None,
            image_rows=_image_rows(runs, cs[0].txt.device) if indexed else None,
            bias_rows=_biases(runs, cs[0].txt) if indexed and any(run.bias is not None for run in runs) else None,
        )

    def modulation(self, tables: Sequence[Tensor]) -> Tensor:
        """Bring the requests' tables [B, M] of one step, in their own order, into that of the segments: [S, M]."""
        return torch.cat([tables[i] for i in self.order]) if len(tables) > 1 else tables[0]

    def joined(self, img: Tensor, txt: Tensor) -> Tensor:
        """Rows of img and txt to rows of both."""
        pairs = zip(self.img.split(img), self.txt.split(txt), strict=True)
        return join([torch.cat(pair, dim=1) for pair in pairs])

    def images(self, both: Tensor) -> Tensor:
        """Rows of both [T, ...] to those of img."""
        if self.image_rows is not None:
            return both[self.image_rows]
        return join([part[:, : run.img] for part, run in zip(self.both.split(both), self.runs, strict=True)])

    def ordered(self, images: Sequence[Tensor]) -> Tensor:
        """Image tokens [B, N, ...] of each request, in their own order, to rows of img; pad tokens start as zeros."""
        runs = [run for run in self.runs for _ in range(run.segments)]
        padded, segment = [], 0
        for i, segments in zip(self.order, self.segments, strict=True):
            pads = runs[segment].img - images[i].shape[1]
            padded.append(F.pad(images[i], (0, 0, 0, pads)) if pads else images[i])
            segment += segments
        return join(padded)

    def apart(self, img: Tensor) -> list[Tensor]:
        """Rows of img to image tokens [B, N, ...] of each request, in their own order."""
        segments = [segment for part in self.img.split(img) for segment in part]
        requests: dict[int, Tensor] = {}
        for i, count in zip(self.order, self.segments, strict=True):
            own, segments = segments[:count], segments[count:]
            requests[i] = torch.stack(own)
        return [requests[i] for i in range(len(requests))]

    def attended(
        self,
        q: Sequence[Tensor],
        k: Sequence[Tensor],
        v: Sequence[Tensor],
        asking: Sequence[Rows],
        asked: Sequence[Rows],
    ) -> list[Tensor]:
        """Attend within each segment; each tensor [T, H, K] is a stream of `asking` or `asked`. Returns those of q."""
        if self.image_rows is None:
            shapes = [[rows.runs for rows in streams] for streams in (asking, asked)]
            return attend_runs(q, k, v, shapes[0], shapes[1], [run.bias for run in self.runs])
        shapes_q, shapes_k = ([rows.shape for rows in streams if rows.shape is not None] for streams in (asking, asked))
        return _attend_runs(list(q), list(k), list(v), shapes_q, shapes_k, self.bias_rows)


Shape = tuple[tuple[int, int], ...]
"""Segments and tokens of a stream's runs."""


def attend_runs(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    asking: Sequence[Shape],
    asked: Sequence[Shape],
    biases: Sequence[Tensor | None],
) -> list[Tensor]:
    """Attend within each segment of streams [T, H, K], whose runs have these shapes; one product for each run."""
    answers: list[tuple[Tensor, ...]] = []
    cut_q, cut_k, cut_v = (
        [_views(x, shape) for x, shape in zip(xs, shapes, strict=True)]
        for xs, shapes in ((q, asking), (k, asked), (v, asked))
    )
    for i, bias in enumerate(biases):
        joint = [torch.cat([stream[i] for stream in cut], dim=1) for cut in (cut_q, cut_k, cut_v)]
        mixed = attend(joint[0], joint[1], joint[2], bias)
        answers.append(mixed.split([stream[i].shape[1] for stream in cut_q], dim=1))
    return [join(stream) for stream in zip(*answers, strict=True)]


@torch.library.custom_op("hidream::attend_runs", mutates_args=())
def _attend_runs(
    q: list[Tensor], k: list[Tensor], v: list[Tensor], asking: list[Tensor], asked: list[Tensor], bias: Tensor | None
) -> list[Tensor]:
    """`attend_runs` as torch.compile sees it: shapes are tensors on the CPU, so that they are no part of a graph."""
    shapes_q, shapes_k = ([tuple(map(tuple, s[:-2].tolist())) for s in shapes] for shapes in (asking, asked))
    tokens = [sum(count for _, count in run) for run in zip(*shapes_k, strict=True)]
    biases = [None] * len(tokens) if bias is None else bias.split(tokens)
    # what a custom operator returns may not share memory
    return [stream.clone() for stream in attend_runs(q, k, v, shapes_q, shapes_k, biases)]


@_attend_runs.register_fake
def _(
    q: list[Tensor], k: list[Tensor], v: list[Tensor], asking: list[Tensor], asked: list[Tensor], bias: Tensor | None
) -> list[Tensor]:
    return [torch.empty_like(stream) for stream in q]


def _views(x: Tensor, shape: Shape) -> list[Tensor]:
    """Rows x [T, ...] to each run's view [S, N, ...]."""
    parts = x.split([segments * tokens for segments, tokens in shape]) if len(shape) > 1 else (x,)
    return [part.unflatten(0, run) for part, run in zip(parts, shape, strict=True)]


def join(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Parts [S, N, ...], with S at `dim`, to rows [T, ...]; without a copy where there is only one."""
    rows = [part.flatten(dim, dim + 1) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim)


def _run(conditionings: Sequence[Conditioning]) -> Run:
    first = conditionings[0]
    return Run(sum(c.txt.shape[0] for c in conditionings), *first.tokens, first.bias)


def _rows(
    runs: Sequence[Run], conditionings: Sequence[Conditioning], tokens: Callable[[Run], int], indexed: bool
) -> Rows:
    """One stream, and which of its rows belong to requests with changes."""
    each = [tokens(run) for run in runs for _ in range(run.segments)]  # of every segment
    stretches, start, segment = [], 0, 0
    for c in conditionings:
        end = start + sum(each[segment : segment + c.txt.shape[0]])
        if c.changes:
            stretches.append((slice(start, end), c.changes))
        start, segment = end, segment + c.txt.shape[0]
    alone = len(conditionings) == 1 and stretches
    spread = ((slice(None), conditionings[0].changes),) if alone else tuple(stretches) or NOWHERE
    shape = tuple((run.segments, tokens(run)) for run in runs)
    if not indexed:
        return Rows(shape, spread, None, None)
    counts = torch.tensor(each)
    segments = torch.arange(len(each)).repeat_interleave(counts).to(conditionings[0].txt.device)
    return Rows(
        shape, spread, segments, torch.tensor((*shape, (0, 0), (0, 0)))
    )  # sizes of 1 and 2 are graphs of their own


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


def _image_rows(runs: Sequence[Run], device: torch.device) -> Tensor:
    """Which rows of both are those of img."""
    own = [i < run.img for run in runs for _ in range(run.segments) for i in range(run.img + run.txt)]
    return torch.tensor(own).nonzero()[:, 0].to(device)


def _biases(runs: Sequence[Run], like: Tensor) -> Tensor:
    """All runs' biases one after the other, 0 where there is none."""
    return torch.cat([like.new_zeros(run.img + run.txt + run.fresh) if run.bias is None else run.bias for run in runs])
