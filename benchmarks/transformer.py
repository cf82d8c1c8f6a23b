"""The transformer alone: ours, diffusers' and ComfyUI's on the same weights, and all as a share of the machine's peak.

nano at several shapes, and one double plus one single block of the real width (2560) with random weights, written once
as a published folder in bfloat16 and loaded by all sides. One call of a peer is compared with

- `ours, a step`: what an image asks for again and again; prompt and times were prepared, as `generate` does it, and
- `ours, all in one call`: what a peer does in each of its calls, prompt and time included; on square shapes.

Shapes that are not square: diffusers pads them, so ours is timed padded as well; ComfyUI does not, nor does ours when
it need not. `ours ×` compares with the step that is padded alike. An answer that differs makes its row void.

The peak is measured in the same rounds (`arithmetic.py`); the share of it counts what has to be computed, for all sides
alike. Only float32 on a CPU and bfloat16 on a GPU are compared.

    python benchmarks/transformer.py [--rounds 5] [--threads 2] [--comfyui CHECKOUT] [--cpu-time]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from arithmetic import peak_flops, peak_products, peak_rates, step_flops
from diffusers import HiDreamImageTransformer2DModel
from measure import Spread, interleaved, ratio, report
from process import load_average
from torch import Tensor, nn

import comfyui
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded, load_transformer
from hidream.model.network.config import TransformerConfig
from hidream.model.network.ragged_batch import RaggedBatch
from hidream.model.network.transformer import Transformer
from hidream.model.resolve import resolve_device, resolve_dtype
from hidream.types import Variant

WIDE = TransformerConfig(num_layers=1, num_single_layers=1, llama_layers=(0, 1))
NANO_TOKENS = 256  # in one turn of a side, at least: a call on 64 takes 20 to 50 ms
NANO_SHAPES = ((8, 8), (16, 16), (32, 32), (7, 9), (16, 24))
WIDE_ROUNDS = {(16, 16): 2, (32, 32): 2, (24, 32): 1}  # a padded call of diffusers' takes twenty seconds
TIMESTEP = 700.0
EQUAL = {torch.float32: 1e-4, torch.bfloat16: 0.15}
"""Largest difference of two answers (`relative`) that are of the same model. Measured with nano: up to 6e-6 in float32
and 0.08 in bfloat16; 0.7 where one side pads and the other does not."""
STEP, PADDED_STEP, CALL = "ours, a step", "ours, a step padded", "ours, all in one call"


@dataclass(frozen=True, slots=True)
class Peers:
    """One set of weights in everybody's hands; ComfyUI is None where there is no checkout."""

    ours: Transformer
    diffusers: HiDreamImageTransformer2DModel
    comfyui: nn.Module | None


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the comparison, before it is run."""

    model: str
    peers: Peers
    grid: tuple[int, int]
    text_tokens: int
    rounds: int
    repeats: int = 1  # calls in one turn

    @property
    def square(self) -> bool:
        return self.grid[0] == self.grid[1]

    def flops(self, padded: bool) -> int:
        """What one step has to compute."""
        tokens = math.prod(self.grid) + (1 if padded and not self.square else 0)
        return step_flops(self.peers.ours.config, tokens, self.text_tokens)


class Inputs(NamedTuple):
    """What every side is asked."""

    latent: Tensor  # [B, C, H, W]
    timestep: Tensor  # [B]
    text: tuple[Tensor, Tensor, Tensor]  # T5, Llama, pooled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of nano; the real width has fewer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--comfyui", type=Path, metavar="CHECKOUT", help="compare with the ComfyUI in this folder too")
    parser.add_argument("--cpu-time", action="store_true", help="time on the processors, where others use them as well")
    parser.add_argument("--models", nargs="+", default=["nano", "width 2560"], choices=["nano", "width 2560"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, clock = resolve_device(arguments.device), time.process_time if arguments.cpu_time else time.perf_counter
    dtype = resolve_dtype("auto", device)
    settings = {"device": str(device), "dtype": str(dtype), "batch": 1, "rounds": arguments.rounds}
    settings |= {"clock": clock.__name__, "load": load_average()}

    rows: list[dict[str, object]] = []
    if "nano" in arguments.models:
        peers = load_peers(embedded(Variant.DEV).part("transformer"), arguments.comfyui, device, dtype)
        for grid in NANO_SHAPES:
            repeats = max(2, NANO_TOKENS // math.prod(grid))
            rows += compare(Case("nano", peers, grid, 16, arguments.rounds, repeats), clock)
    if "width 2560" in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            write_wide(Path(folder))
            peers = load_peers(Path(folder), arguments.comfyui, device, dtype)
            for grid, rounds in WIDE_ROUNDS.items():
                rows += compare(Case("width 2560", peers, grid, 128, rounds), clock)
    release = comfyui.version(arguments.comfyui) if arguments.comfyui else "not measured: no --comfyui CHECKOUT"
    print(f"{device}, {dtype}, {clock.__name__}; ComfyUI {release}")
    report("transformer", rows, settings | {"comfyui": release})


def write_wide(folder: Path) -> None:
    """Write a transformer of the real width with random weights, as diffusers writes it."""
    torch.manual_seed(0)
    model = HiDreamImageTransformer2DModel(**published(WIDE))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    model.to(torch.bfloat16).save_pretrained(folder)


def published(config: TransformerConfig) -> dict[str, object]:
    """The configuration as `transformer/config.json` has it."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def load_peers(folder: Path, checkout: Path | None, device: torch.device, dtype: torch.dtype) -> Peers:
    """Load one folder of weights into every side; ComfyUI takes the tensors that diffusers has read."""
    ours = load_transformer(Checkpoint(transformer=folder), device, dtype)
    theirs = HiDreamImageTransformer2DModel.from_pretrained(folder, dtype=dtype).to(device).eval()
    if checkout is None:
        return Peers(ours, theirs, None)
    config = published(ours.config)
    return Peers(ours, theirs, comfyui.comfyui_transformer(checkout, config, theirs.state_dict(), device))


@torch.inference_mode()
def compare(case: Case, clock: Callable[[], float]) -> list[dict[str, object]]:
    """Time all sides in turn, the peak among them; one row for each."""
    weight = next(case.peers.ours.parameters())
    device, dtype = weight.device, weight.dtype
    sides = sides_of(case, inputs(case, device, dtype))
    differences = differences_of({name: ask() for name, ask in sides.items()})  # which warms all sides up
    peaks = peak_products(device, dtype)
    seconds = interleaved({**peaks, **sides}, case.rounds, 0, clock, case.repeats)
    rates = peak_rates({name: seconds.pop(name) for name in peaks}, device)
    same: dict[str, object] = {"model": case.model, "tokens": f"{case.grid[0]}x{case.grid[1]}+3x{case.text_tokens}"}
    rows = [same | row_of(case, name, seconds, rates) for name in sides]
    for row, difference in zip(rows, differences.values(), strict=True):
        row |= {"difference": f"{difference:.1e}", "note": "" if difference <= EQUAL[dtype] else "void: another answer"}
    peak: dict[str, object] = (
        dict.fromkeys(rows[0], "–") | same | {"side": "peak", "GFLOP/s": f"{statistics.median(rates) / 1e9:.0f}"}
    )
    return [*rows, peak | {"ms": f"{1e3 * peak_flops(device) / statistics.median(rates):.2f}", "note": ""}]


def inputs(case: Case, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Random ones, the same on every device."""
    config, (rows, columns) = case.peers.ours.config, case.grid
    g = torch.Generator().manual_seed(rows * columns)
    p, layers = config.patch_size, max(config.llama_layers) + 1
    t5, llama = config.caption_channels

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device, dtype)

    text = (
        draw(1, case.text_tokens, t5),
        draw(layers, 1, case.text_tokens, llama),
        draw(1, config.text_emb_dim),
    )
    latent = draw(1, config.in_channels, rows * p, columns * p)
    return Inputs(latent, torch.full((1,), TIMESTEP, device=device), text)


def sides_of(case: Case, x: Inputs) -> dict[str, Callable[[], Tensor]]:
    """Everybody who answers for these inputs, with the velocity."""
    latent, timestep, text = x
    peers = case.peers
    sides: dict[str, Callable[[], Tensor]] = {
        "diffusers": lambda: -peers.diffusers(latent, timestep, *text, return_dict=False)[0]
    }
    if case.square:
        sides[CALL] = partial(peers.ours, latent, timestep, *text)
    else:
        sides[PADDED_STEP] = step_of(case, x, padded=True)
    sides[STEP] = step_of(case, x, padded=False)
    if peers.comfyui is not None:
        sides["ComfyUI"] = partial(comfyui.answer, peers.comfyui, latent, timestep, *text)
    return sides


def step_of(case: Case, x: Inputs, padded: bool) -> Callable[[], Tensor]:
    """Prepare prompt and time, as for an image; what is left is one step."""
    c = case.peers.ours.condition(*x.text, case.grid, padded=padded)
    modulation, packed = case.peers.ours.modulations([TIMESTEP], c)[0], RaggedBatch.of([c])
    return lambda: case.peers.ours.velocity([x.latent], [modulation], packed)[0]


def differences_of(answers: Mapping[str, Tensor]) -> dict[str, float]:
    """How far each answer is from diffusers', or from our own where diffusers would pad and this side does not."""
    padded = answers["diffusers"]
    plain = answers[STEP] if PADDED_STEP in answers else padded
    return {name: relative(a, plain if name in (STEP, "ComfyUI") else padded) for name, a in answers.items()}


def relative(answer: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, of the answer's: one token that fell to another expert hardly shows."""
    answer, expected = answer.float(), expected.float()
    return ((answer - expected).square().mean() / expected.square().mean()).sqrt().item()


def row_of(case: Case, name: str, seconds: Mapping[str, list[float]], rates: list[float]) -> dict[str, object]:
    """Speed of one side: against diffusers, against ours padded alike, and of what the machine can."""
    padded = not case.square and name not in (STEP, "ComfyUI")
    flops, taken = case.flops(padded), seconds[name]
    return {
        "side": name,
        "ms": str(Spread.of(taken)).strip(),
        "× diffusers": f"{ratio(seconds['diffusers'], taken):.2f}",
        "ours ×": f"{ratio(taken, seconds[PADDED_STEP if padded else STEP]):.2f}",
        "GFLOP/s": f"{flops / statistics.median(taken) / 1e9:.0f}",
        "of peak": f"{statistics.median(flops / s / r for s, r in zip(taken, rates, strict=True)):.2f}",
    }


if __name__ == "__main__":
    main()
