"""Several requests as one sequence of rows: what one step multiplies at once, and where each request's rows are.

Shapes: S segments, T rows (the tokens of all segments), N image tokens and L text tokens of a segment, D width,
H heads, K head dim.

A *segment* is one prompt's image and text: a request has one, or two with guidance. Linear layers and experts see rows
and know no segments, so their number depends on the tokens, not on the requests. Only attention stays within a segment,
and a segment's modulation is its own. Nothing is padded: neighbours of equal shape form a *run*, which is a view [S, N,
D] of its rows, so that a batch of equal shapes is computed as one batch always was.

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

from hidream.model.attention import Rope, attend
from hidream.model.linear import NOWHERE, UNCHANGED, Changes, Spread


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

    @property
    def sizes(self) -> list[int]:
        """Rows of each run."""
        return [segments * tokens for segments, tokens in self.runs]

    def split(self, x: Tensor) -> list[Tensor]:
        """Rows x [T, ...] to each run's view [S, N, ...]."""
        parts = x.split(self.sizes) if len(self.runs) > 1 else (x,)
        return [part.unflatten(0, run) for part, run in zip(parts, self.runs, strict=True)]

    def each(self, function: Callable[..., Tensor], x: Tensor, *tables: Tensor) -> Tensor:
        """Apply `function` to every run of x [T, D] with its segments' part of each table [S, D], as [S, N, D]."""
        parts = self.split(x)
        if len(parts) == 1:
            return function(parts[0], *(table[:, None] for table in tables)).flatten(0, 1)
        counts = [segments for segments, _ in self.runs]
        cut = zip(*(table[:, None].split(counts) for table in tables), strict=True)
        return join([function(part, *own) for part, own in zip(parts, cut, strict=True)])

    def add(self, x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
        """Sum of x [T, D] and gate [S, D]·change [T, D]."""
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

    @classmethod
    def of(cls, conditionings: Sequence[Conditioning]) -> Packed:
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
            img=_rows(runs, cs, lambda run: run.img),
            txt=_rows(runs, cs, lambda run: run.txt),
            fresh=_rows(runs, cs, lambda run: run.fresh),
            both=_rows(runs, cs, lambda run: run.img + run.txt),
            text=join([c.txt for c in cs]),
            news=join([c.fresh for c in cs], dim=1),
            rope_img=_ropes(img_ropes),
            rope_both=_ropes(ropes),
            key_mask=_masks(cs, text=False) if masked else None,
            key_mask_both=_masks(cs, text=True) if masked else None,
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
        answers: list[tuple[Tensor, ...]] = []
        cut_q, cut_k, cut_v = (
            [rows.split(x) for x, rows in zip(xs, streams, strict=True)]
            for xs, streams in ((q, asking), (k, asked), (v, asked))
        )
        for i, run in enumerate(self.runs):
            joint = [torch.cat([stream[i] for stream in cut], dim=1) for cut in (cut_q, cut_k, cut_v)]
            mixed = attend(joint[0], joint[1], joint[2], run.bias)
            answers.append(mixed.split([stream[i].shape[1] for stream in cut_q], dim=1))
        return [join(stream) for stream in zip(*answers, strict=True)]


def join(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Parts [S, N, ...], with S at `dim`, to rows [T, ...]; without a copy where there is only one."""
    rows = [part.flatten(dim, dim + 1) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim)


def _run(conditionings: Sequence[Conditioning]) -> Run:
    first = conditionings[0]
    return Run(sum(c.txt.shape[0] for c in conditionings), *first.tokens, first.bias)


def _rows(runs: Sequence[Run], conditionings: Sequence[Conditioning], tokens: Callable[[Run], int]) -> Rows:
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
    return Rows(tuple((run.segments, tokens(run)) for run in runs), spread)


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
