"""An image of nano end to end, by stage, against diffusers' own HiDreamImagePipeline, plain and with its speed-ups.

All sides draw the same request from the same folder in turn: same weights, seed, noise, steps, latent shape, text
length and type. What a side really computed is compared with ours and printed; a row that differs is void, and so is a
side that claims to be exact and draws another image (PSNR against plain diffusers). What a peer cannot do is a row as
well, with its reason. The first image of each side is not measured; what compiling took is said. `CPU s` is the time
on the processors, which tells the sides apart also where other programs take their part of the clock's.

    python benchmarks/pipeline.py [--variant dev] [--rounds 5] [--threads 2] [--without torch.compile]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from measure import Spread, ratio, report
from process import load_average
from stock import SPEED_UPS, STAGES, Drawn, Seen, SpeedUp, Stock, plain

from hidream.model.loading import load
from hidream.model.model import Model
from hidream.model.pipeline import generate, plan_passes, resolve
from hidream.outputs.encode import encode
from hidream.request import ImageRequest
from hidream.types import SAMPLING_PRESETS, ImageFormat, Size, Variant

PROMPT = "flat style a sailboat in the ocean"
SEED = 7
SIZES = (512, 1024, 1536)
BASE, OURS = "diffusers", "ours"
SAME_IMAGE_DB = 40.0
"""Rounding to 8 bits before or after enlarging gives 55; in float32 nothing else may differ."""

Draw = Callable[[ImageRequest], Drawn]


@dataclass(slots=True)
class Side:
    """One side of the comparison, and what it did at one size."""

    draw: Draw
    kind: SpeedUp
    warm_up_s: float  # of its first image
    runs: list[Drawn] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def totals(self) -> list[float]:
        return [sum(run.seconds.values()) for run in self.runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", type=Variant, default=Variant.DEV, choices=[Variant.DEV, Variant.FULL])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without", nargs="+", default=[], metavar="WORD", help="leave out peers with it in the name")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    busy = load_average()
    model = load(arguments.variant)
    model = dataclasses.replace(model, text=dataclasses.replace(model.text, cache=None))  # the peer encodes each time

    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # else a second run would seem to compile in no time
        sides, failed = prepare(arguments.variant, model, arguments.without)
        for side_px in SIZES:
            rows += compare(side_px, sides, failed, arguments.rounds)
    settings = equal(sides[OURS].runs[0].seen, arguments.variant) | {"version": model.version}
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    report("pipeline", rows, {**settings, "rounds": arguments.rounds, "load": busy})


def prepare(variant: Variant, model: Model, without: list[str]) -> tuple[dict[str, Side], dict[str, str]]:
    """Load every side and let it draw a first image; returns those that could, and why the others could not."""
    request = ImageRequest(PROMPT, Size(SIZES[0], SIZES[0]), seed=SEED)
    sides: dict[str, Side] = {}
    failed: dict[str, str] = {}
    for name, speed_up in SPEED_UPS.items():
        if any(word in name for word in without):
            failed[name] = "left out (--without)"
            continue
        try:
            sides[name] = warmed(Stock(variant, model, speed_up), request, speed_up)
        except Exception as error:  # whatever a peer raises is its result
            if name == BASE:
                raise
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]:.100}"
    sides[OURS] = warmed(lambda request: ours(model, request), request, SpeedUp(plain))
    return sides, failed


def warmed(draw: Draw, request: ImageRequest, kind: SpeedUp) -> Side:
    """Draw a first image, which compiles what is to be compiled."""
    started = time.perf_counter()
    draw(request)
    return Side(draw, kind, time.perf_counter() - started)


def ours(model: Model, request: ImageRequest) -> Drawn:
    """Draw with the product's own pipeline and encoder."""
    steps: list[int] = []
    image = generate(model, request, lambda done, total: steps.append(done))
    started = time.perf_counter()
    encode(image.pixels, ImageFormat.PNG, seed=request.seed, version=model.version)
    t = image.timings
    seconds = (t.text_s, t.denoise_s, t.decode_s, time.perf_counter() - started)
    return Drawn(dict(zip(STAGES, seconds, strict=True)), image.pixels, seen_of_ours(model, request, len(steps)))


def seen_of_ours(model: Model, request: ImageRequest, steps: int) -> Seen:
    """What `generate` planned for the request, and the steps that it made."""
    passes, config = plan_passes(model, request, resolve(model, request)), model.transformer.config
    grid, p = passes[0].grid, config.patch_size
    shape = (1, config.in_channels, grid.rows * p, grid.columns * p)
    return Seen(shape, model.text.tokens, steps, model.dtype)


def compare(side_px: int, sides: dict[str, Side], failed: dict[str, str], rounds: int) -> list[dict[str, object]]:
    """Let all sides draw in turn; one row for each, the failed ones as well."""
    request = ImageRequest(PROMPT, Size(side_px, side_px), seed=SEED)
    for side in sides.values():
        side.runs.clear()
        side.cpu_s.clear()
    for i in range(rounds + 1):
        for side in sides.values():
            started = time.process_time()
            drawn = side.draw(request)
            if i:  # the first round at a size warms up
                side.runs.append(drawn)
                side.cpu_s.append(time.process_time() - started)
    rows = {name: row(name, sides) for name in sides}
    blank = dict.fromkeys(rows[BASE], "–")
    rows |= {name: {**blank, "side": name, "note": f"not measured: {why}"} for name, why in failed.items()}
    return [{"size": str(request.size)} | rows[name] for name in (*SPEED_UPS, OURS)]


def row(name: str, sides: dict[str, Side]) -> dict[str, object]:
    """Stages in ms, the whole, how fast that is, and how near the image comes to diffusers'."""
    side, base = sides[name], sides[BASE]
    likeness = psnr(side.runs[0].pixels, base.runs[0].pixels)
    return {
        "side": name,
        **{f"{stage} ms": Spread.of([run.seconds[stage] for run in side.runs]).median_ms for stage in STAGES},
        "total ms": str(Spread.of(side.totals)).strip(),
        "CPU s": statistics.median(side.cpu_s),
        "× diffusers": f"{ratio(base.totals, side.totals):.2f}",
        "ours ×": f"{ratio(side.totals, sides[OURS].totals):.2f}",
        "PSNR dB": f"{likeness:.1f}" if math.isfinite(likeness) else "same",
        "note": note(side, sides[OURS].runs[0].seen, likeness),
    }


def note(side: Side, expected: Seen, likeness: float) -> str:
    """Why a row is void, or what has to be known of it."""
    seen = side.runs[0].seen
    if seen != expected:
        return f"void: {seen} instead of {expected}"
    if not side.kind.lossy and seen.dtype is torch.float32 and likeness < SAME_IMAGE_DB:
        return "void: generates another image"
    if side.kind.compiles:
        return f"compiled in {side.warm_up_s - statistics.median(side.totals):.0f} s"
    return "lossy" if side.kind.lossy else ""


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    """Likeness of two images of uint8, in dB; infinite where they are the same."""
    error = np.mean((image.astype(np.float64) - other.astype(np.float64)) ** 2)
    return 10 * math.log10(255**2 / error) if error else math.inf


def equal(seen: Seen, variant: Variant) -> dict[str, object]:
    """What holds for all sides, for the report."""
    preset = SAMPLING_PRESETS[variant]
    return {
        "latent": list(seen.latent),
        "text tokens": seen.text_tokens,
        "steps": seen.steps,
        "guidance": preset.guidance,
        "dtype": str(seen.dtype),
        "seed": SEED,
    }


if __name__ == "__main__":
    main()
