"""What every stage of the training shares: a folder, checkpoints that a later start resumes, a log, a plot of the loss.

A stage is a dict of things with `state_dict` and `load_state_dict` (modules, optimisers, generators wrapped below)
and a count of steps. It is saved whole, atomically, every few minutes; killed at any moment, it goes on from there.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import recipe
from hidream.model.network import bfloat16
from hidream.model.network.transformer import Transformer
from recipe import Run

RUNS = Path(__file__).parent / "runs"


class Stateful(Protocol):
    """What can be saved and resumed."""

    def state_dict(self) -> dict[str, Any]:
        """Give the state."""

    def load_state_dict(self, state: Any) -> object:  # noqa: ANN401
        """Take a state."""


class Dice:
    """A generator of random numbers that can be saved."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def seed(self) -> int:
        """Draw a seed for somebody else's generator."""
        return int(torch.randint(2**31, (), generator=self.generator))

    def uniform(self) -> float:
        """Draw from 0 to 1."""
        return float(torch.rand((), generator=self.generator))

    def state_dict(self) -> dict[str, Any]:
        """Give the state."""
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state."""
        self.generator.set_state(state["state"])


class Stage:
    """One stage's folder: `checkpoint.pt`, `log.jsonl`, `loss.png`, and `done` when it is."""

    def __init__(self, folder: Path, run: Run, parts: Mapping[str, Stateful]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.step = folder, 0
        self._run, self._parts = run, parts
        self._sums: dict[str, torch.Tensor] = {}
        self._summed = 0
        self._saved_at = self._reported_at = time.monotonic()
        self._seconds_before = 0.0
        if (folder / "checkpoint.pt").exists():
            self._resume()

    def steps(self, total: int) -> Iterator[int]:
        """Count from where the last start ended to `total`, saving now and then, and at the end."""
        started = time.monotonic()
        before = self._seconds_before
        while self.step < total:
            yield self.step
            self.step += 1
            self._seconds_before = before + time.monotonic() - started
            if time.monotonic() - self._saved_at > self._run.checkpoint_s:
                self.save()
        self.save()

    def report(self, **losses: torch.Tensor) -> None:
        """Take the losses of one step; every `log_every` steps their means are written down."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._summed += 1
        if (self.step + 1) % self._run.log_every:
            return
        now = time.monotonic()
        means = {name: float(total) / self._summed for name, total in self._sums.items()}
        rate = self._summed / (now - self._reported_at)
        line = {
            "step": self.step + 1,
            "seconds": round(self._seconds_before),
            "steps_a_second": round(rate, 2),
            **means,
        }
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(self.folder.name, *(f"{k}={v:.4g}" for k, v in line.items()), flush=True)
        self._sums, self._summed, self._reported_at = {}, 0, now

    def save(self) -> None:
        """Write the checkpoint; a crash leaves the old one or the new one."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        temporary = self.folder / "checkpoint.tmp"
        torch.save({"step": self.step, "seconds": self._seconds_before, "parts": state}, temporary)
        temporary.replace(self.folder / "checkpoint.pt")
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Say that the stage is done, and draw its losses."""
        plot(self.folder)
        (self.folder / "done").touch()

    def _resume(self) -> None:
        state = torch.load(self.folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        self.step, self._seconds_before = state["step"], state["seconds"]
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        print(f"{self.folder.name}: resumed at step {self.step}", flush=True)


def done(folder: Path) -> bool:
    """Say whether an earlier start of a stage came to its end."""
    return (folder / "done").exists()


def plot(folder: Path) -> None:
    """Draw every loss of `log.jsonl` over the steps, into `loss.png`."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(8, 4))
    axes = figure.add_subplot()
    for name in lines[-1].keys() - {"step", "seconds", "steps_a_second"}:
        axes.plot([line["step"] for line in lines], [line.get(name) for line in lines], label=name)
    axes.set(xlabel="step", yscale="log", title=folder.name)
    axes.legend()
    figure.savefig(folder / "loss.png")


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Begin a stage's command line: where all stages lie, which recipe, which device."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--config", type=Path, default=recipe.CONFIG, help="the recipe (default: %(default)s)")
    parser.add_argument("--device", type=resolve_device, default=resolve_device(), help="default: %(default)s")
    return parser


def resolve_device(name: str = "auto") -> torch.device:
    """Settle where to train: a GPU if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


@contextmanager
def quick(device: torch.device) -> Iterator[None]:
    """Compute as training does: products in bfloat16 where that is faster; on a CPU attention step by step.

    The gradients of fused attention cost a CPU more than the memory that they save: a tenth of a step.
    """
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, _prefers_bfloat16(device)), attention:
        yield


def compile_blocks(*transformers: Transformer, backend: str = "inductor") -> None:
    """Have the blocks compiled: a third less time a step on a CPU, after a minute for squares and all other shapes.

    Without the hooks on their outputs: one that makes a list longer would be a new graph for each of its lengths.
    """
    torch._dynamo.config.recompile_limit = 32  # with and without gradients, square and not, last and not
    for transformer in transformers:
        for block in transformer.blocks:
            block.forward = torch.compile(block.forward, backend=backend)  # type: ignore[method-assign]


@functools.cache
def _prefers_bfloat16(device: torch.device) -> bool:
    """Say whether products are computed in bfloat16: on a GPU, and on a CPU that was measured to be faster so."""
    return device.type == "cuda" or (device.type == "cpu" and bfloat16.is_faster())
