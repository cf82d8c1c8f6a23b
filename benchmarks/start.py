"""From nothing to the first image, and the memory that takes: a fresh process each time, both sides in turn.

nano at 512×512, to the bytes of a PNG, the files in the system's cache. Each side is what its user writes: import, load
the folder, draw; and draw again, which is what an image costs when all is at hand. Memory is the most that was
resident (`process.py`), mapped files included; before it counts, Python itself takes 0.02 GB.

With --beside, `hidream generate` as its users type it, from the start of the process to its end with the image in a
file, of this checkout and another one; the time on the processors is the better of two measures where others use them.

    python benchmarks/start.py [--rounds 5] [--threads 2]
    python benchmarks/start.py --beside CHECKOUT [--rounds 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from process import fresh, load_average, status_bytes

BORN = time.perf_counter()
PROMPT, SIDE_PX, SEED = "flat style a sailboat in the ocean", 512, 7
HERE = Path(__file__).parents[1]
NANO = HERE / "src" / "hidream" / "nano" / "dev"  # found without importing what it belongs to
STAGES = ("import", "load", "first image", "second image")
Lap = Callable[[str], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(SIDES[arguments.side], arguments.threads)))
    elif arguments.beside:
        sides = {"the other": arguments.beside, "this checkout": HERE}
        compare_commands(sides, arguments.rounds, arguments.threads)
    else:
        compare(arguments.rounds, arguments.threads)


def compare(rounds: int, threads: int) -> None:
    """Run both sides in turn and report; the first round only brings the files into the cache."""
    from measure import Spread, ratio, report

    load = load_average()
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for i in range(1 + rounds):
        for side in SIDES:
            taken = fresh(__file__, "--side", side, "--threads", str(threads))
            found[side] += [taken] if i else []
    rows: list[dict[str, object]] = []
    for side, runs in found.items():
        whole = [run["whole"] for run in runs]
        cells: dict[str, object] = {"side": side}
        cells |= {f"{stage} s": statistics.median(run[stage] for run in runs) for stage in STAGES}
        cells["to the first image ms"] = str(Spread.of(whole)).strip()
        cells["× diffusers"] = f"{ratio([run['whole'] for run in found['diffusers']], whole):.2f}"
        cells["peak GB"] = statistics.median(run["peak_bytes"] for run in runs) / 1e9
        rows.append(cells)
    report("start", rows, {"size": f"{SIDE_PX}x{SIDE_PX}", "rounds": rounds, "load": load})


def compare_commands(checkouts: dict[str, Path], rounds: int, threads: int) -> None:
    """Run `hidream generate` of each checkout in turn and report; the first is what the others are compared with."""
    from measure import Spread, ratio, report

    load = load_average()
    walls: dict[str, list[float]] = {side: [] for side in checkouts}
    cpus: dict[str, list[float]] = {side: [] for side in checkouts}
    for i in range(1 + rounds):
        for side, checkout in checkouts.items():
            wall, cpu = command(checkout, threads)
            walls[side] += [wall] if i else []
            cpus[side] += [cpu] if i else []
    first = next(iter(checkouts))
    rows: list[dict[str, object]] = [
        {
            "hidream generate": side,
            "start to end ms": str(Spread.of(walls[side])).strip(),
            "× the other": f"{ratio(walls[first], walls[side]):.2f}",
            "on the processors ms": str(Spread.of(cpus[side])).strip(),
            "the same × the other": f"{ratio(cpus[first], cpus[side]):.2f}",
        }
        for side in checkouts
    ]
    report("start", rows, {"size": "the default", "rounds": rounds, "load": load})


def command(checkout: Path, threads: int) -> tuple[float, float]:
    """Generate an image with the command line in a process of its own: seconds in all, and on the processors."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        typed = [sys.executable, "-m", "hidream.cli", "generate", "a fox", "--seed", str(SEED), "--out", "fox.png"]
        before, started = os.times(), time.perf_counter()
        subprocess.run(typed, cwd=folder, env=environment, check=True, capture_output=True)
        wall, after = time.perf_counter() - started, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, used


def measure(side: Callable[[Lap, int], None], threads: int) -> dict[str, float]:
    """Run one side in this process: seconds of each stage, of all up to the first image, and the peak until then."""
    found: dict[str, float] = {}
    last = BORN

    def lap(stage: str) -> None:
        nonlocal last
        last, before = time.perf_counter(), last
        found[stage] = last - before
        if stage == STAGES[2]:
            found.update({"whole": last - BORN, "peak_bytes": status_bytes("VmHWM")})

    side(lap, threads)
    return found


def diffusers(lap: Lap, threads: int) -> None:
    """Draw with the stock pipeline, set to the area that nano draws best; nothing of ours is imported."""
    import torch
    from diffusers import FlowMatchLCMScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel

    torch.set_num_threads(threads)
    lap("import")
    pipeline = HiDreamImagePipeline.from_pretrained(
        NANO,
        transformer=HiDreamImageTransformer2DModel.from_pretrained(NANO / "transformer", dtype=torch.float32),
        scheduler=FlowMatchLCMScheduler.from_pretrained(NANO / "scheduler"),
        dtype=torch.float32,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.default_sample_size = json.loads((NANO / "model_index.json").read_text())["_default_sample_size"]
    lap("load")
    for stage in STAGES[2:]:
        image = pipeline(
            PROMPT,
            height=SIDE_PX,
            width=SIDE_PX,
            num_inference_steps=28,
            guidance_scale=0.0,
            max_sequence_length=pipeline.tokenizer_4.model_max_length,
            generator=torch.Generator().manual_seed(SEED),
        ).images[0]
        image.resize((SIDE_PX, SIDE_PX)).save(io.BytesIO(), "PNG")
        lap(stage)


def ours(lap: Lap, threads: int) -> None:
    """Draw with the product's library."""
    import torch

    from hidream.model.loading import load
    from hidream.model.pipeline import generate
    from hidream.outputs.encode import encode
    from hidream.request import ImageRequest
    from hidream.types import ImageFormat, Size, Variant

    torch.set_num_threads(threads)
    lap("import")
    model = load(Variant.DEV)
    lap("load")
    for stage in STAGES[2:]:
        image = generate(model, ImageRequest(PROMPT, Size(SIDE_PX, SIDE_PX), seed=SEED))
        encode(image.pixels, ImageFormat.PNG, seed=SEED, version=model.version)
        lap(stage)


SIDES: dict[str, Callable[[Lap, int], None]] = {"diffusers": diffusers, "ours": ours}

if __name__ == "__main__":
    main()
