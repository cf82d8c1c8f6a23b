"""Muon: an optimiser whose steps change a matrix equally in all directions; vectors are left to AdamW.

The momentum of each matrix is replaced by the nearest matrix with orthogonal rows (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/), by five Newton-Schulz steps. They are taken on the small Gram matrix and
applied once at the end, and matrices of one shape are treated as one batch: on two cores that is what makes it cheaper
than the step it improves. Convolutions count as matrices [out, in·height·width].

    the autoencoder after a minute: 17.7 dB with AdamW's best rate in five minutes, with Muon in one (docs/NANO.md)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic, tuned to bring every singular value near 1 within five steps (Jordan)."""
STEPS = 5
CLIP = 1.0
"""Largest norm of all gradients together."""


class Muon(torch.optim.Optimizer):
    """Muon, for parameters of two axes and more.

    `every` so many steps it changes them; in those between it only gathers momentum, which costs next to nothing.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        every: int = 1,
    ) -> None:
        super().__init__(
            matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "every": every, "steps": 0}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients that there are."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.flatten(1).shape].append(parameter)
            group["steps"] += 1
            for parameters in alike.values():
                averages = [self.state[p].setdefault("average", torch.zeros_like(p)) for p in parameters]
                gradients = [p.grad for p in parameters]
                torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
                if group["steps"] % group["every"] == 0:
                    self._step(parameters, averages, group["lr"], group["momentum"], group["weight_decay"])

    def _step(
        self, parameters: list[nn.Parameter], averages: list[Tensor], rate: float, momentum: float, decay: float
    ) -> None:
        gradients = [p.grad for p in parameters]
        ahead = torch._foreach_lerp(gradients, averages, momentum)  # Nesterov
        rows, columns = ahead[0].flatten(1).shape
        directions = orthogonal(torch.stack([each.flatten(1) for each in ahead]))
        steps = [each.view_as(p) for each, p in zip(directions, parameters, strict=True)]
        torch._foreach_mul_(parameters, 1 - rate * decay)
        torch._foreach_add_(parameters, steps, alpha=-rate * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices [K, M, N] to those next to them whose singular values are all about 1."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    gram = wide @ wide.mT  # [K, m, m], of the shorter side
    a, b, c = NEWTON_SCHULZ
    product = None
    for i in range(STEPS):
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal(dim1=1, dim2=2).add_(a)
        product = step if product is None else step @ product
        if i + 1 < STEPS:
            gram = step @ gram @ step  # the Gram matrix of step @ wide
    wide = product @ wide
    return wide if wide.shape == matrices.shape else wide.mT


class Optimisers:
    """What trains a module: Muon for its matrices, AdamW for its vectors and for the layers at its ends, one schedule.

    `ends` are parts of the names of the first and last layers: where few channels meet many, equal steps in all
    directions lose the faint ones. Without a `muon_rate` it is AdamW for all; `every` is Muon's. `schedule` gives the
    share of the rates at a step, counted from 0.
    """

    def __init__(
        self,
        module: nn.Module,
        schedule: Callable[[int], float],
        adamw_rate: float,
        muon_rate: float | None = None,
        ends: Iterable[str] = (),
        every: int = 1,
    ) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        matrices = [
            parameter
            for name, parameter in module.named_parameters()
            if muon_rate and parameter.requires_grad and parameter.ndim > 1 and not any(end in name for end in ends)
        ]
        orthogonalised = {id(p) for p in matrices}
        others = [p for p in self._parameters if id(p) not in orthogonalised]
        adamw = torch.optim.AdamW(others, adamw_rate, betas=(0.9, 0.98), fused=True)
        self._optimisers: list[torch.optim.Optimizer] = [adamw]
        if muon_rate:
            self._optimisers.append(Muon(matrices, muon_rate, every=every))
        self._schedules = [torch.optim.lr_scheduler.LambdaLR(each, schedule) for each in self._optimisers]

    def step(self, loss: Tensor) -> None:
        """Take one step down the gradient of `loss`."""
        for optimiser in self._optimisers:
            optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, CLIP)
        for optimiser, schedule in zip(self._optimisers, self._schedules, strict=True):
            optimiser.step()
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Give the state."""
        return {str(i): part.state_dict() for i, part in enumerate((*self._optimisers, *self._schedules))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state."""
        for i, part in enumerate((*self._optimisers, *self._schedules)):
            part.load_state_dict(state[str(i)])


def rise_and_fall(step: int, warm_up: int, steps: int, fall: float = 1.0) -> float:
    """Share of the learning rate: up in a line, level, then in the last `fall` of all steps down to nothing."""
    return min(1.0, (step + 1) / warm_up, max(0.0, (steps - step) / max(1.0, fall * (steps - warm_up))))
