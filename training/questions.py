"""What is asked of a scene by those who read it: of captions by the text encoders' training, of images by the judge.

Shapes: B scenes, N tokens of an image's grid, D channels. `objects` means which ones there are, `first` the left or
upper one, `layout` one kind of object, side by side, or one above the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from concepts import Concepts
from hidream.model.latents.shape import Grid
from hidream.model.network.transformer import norm
from placement import PARTS, part_of, place
from scenes import Layout, Scene


def heads(width: int, concepts: Concepts) -> nn.ModuleDict:
    """Make one linear layer per question, from features of `width` to the logits of its answers."""
    things, styles, backgrounds = len(concepts.objects), len(concepts.styles), len(concepts.backgrounds)
    answers = {"objects": things, "first": things, "style": styles, "background": backgrounds, "count": 3, "layout": 3}
    return nn.ModuleDict({question: nn.Linear(width, count) for question, count in answers.items()})


def truths(scenes: Sequence[Scene], concepts: Concepts, aspect: float = 1.0) -> dict[str, Tensor]:
    """Give the right answers, each [B], `objects` [B, objects]; an AND is side by side unless the image is tall."""
    names, styles, backgrounds = (list(d) for d in (concepts.objects, concepts.styles, concepts.backgrounds))
    objects = torch.zeros(len(scenes), len(names))
    for i, scene in enumerate(scenes):
        objects[i, [names.index(name) for name in scene.objects]] = 1
    beside = {Layout.SINGLE: 0, Layout.AND: 1 if aspect >= 1 else 2, Layout.LEFT_OF: 1, Layout.ABOVE: 2}
    return {
        "objects": objects,
        "first": torch.tensor([names.index(scene.objects[0]) for scene in scenes]),
        "style": torch.tensor([styles.index(scene.style) for scene in scenes]),
        "background": torch.tensor([backgrounds.index(scene.background) for scene in scenes]),
        "count": torch.tensor([scene.count - 1 for scene in scenes]),
        "layout": torch.tensor([beside[scene.layout] for scene in scenes]),
    }


def loss_of(answers: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> Tensor:
    """Cross entropy over all questions."""
    objects = F.binary_cross_entropy_with_logits(answers["objects"], truth["objects"], reduction="none").sum(1).mean()
    return objects + sum(F.cross_entropy(answers[name], truth[name]) for name in truth if name != "objects")


def verdicts(answers: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each question and scene [B], whether the answer is right; `objects` means all of them and no other."""
    right = {name: answers[name].argmax(1) == truth[name] for name in truth if name != "objects"}
    wanted = truth["objects"].sum(1).int().tolist()
    best = [set(row.topk(n).indices.tolist()) for row, n in zip(answers["objects"], wanted, strict=True)]
    there = [set(row.nonzero().flatten().tolist()) for row in truth["objects"]]
    right["objects"] = torch.tensor([a == b for a, b in zip(best, there, strict=True)], device=truth["style"].device)
    return right


class TokenReader(nn.Module):
    """Reads off each token of an image what it shows, an object or a ground, which part of it, and in which style."""

    def __init__(self, dim: int, concepts: Concepts) -> None:
        super().__init__()
        self.shown = nn.Linear(dim, len(concepts.objects) + len(concepts.backgrounds))
        self.part = nn.Linear(dim, PARTS)
        self.style = nn.Linear(dim, len(concepts.styles))

    def forward(self, tokens: Tensor, shown: Tensor, part: Tensor, style: Tensor) -> Tensor:
        """Cross entropy of all readings of tokens [B, N, D]; `shown` and `part` [B, N] are of `token_truths`."""
        tokens, styles = norm(tokens), style[:, None].expand_as(shown)
        right = {self.shown: shown, self.part: part, self.style: styles}
        return torch.stack([F.cross_entropy(read(tokens).float().mT, truth) for read, truth in right.items()]).sum()


def token_truths(scenes: Sequence[Scene], grid: Grid, concepts: Concepts) -> Tensor:
    """Say what each token shows, and which part of it as `placement.part_of` numbers them, [B, 2, N].

    What it shows is the number of an object or, behind them, of a background.
    """
    objects, backgrounds = list(concepts.objects), list(concepts.backgrounds)
    found = torch.zeros(len(scenes), 2, *grid, dtype=torch.long)
    for (shown, part), scene in zip(found, scenes, strict=True):
        shown[:] = len(objects) + backgrounds.index(scene.background)
        for p in place(scene, grid):
            here = slice(p.row, p.row + p.size), slice(p.column, p.column + p.size)
            shown[here] = objects.index(p.object)
            part[here] = part_of(p.size, 0, 0) + torch.arange(p.size**2).view(p.size, p.size)
    return found.flatten(2)
