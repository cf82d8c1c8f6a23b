"""Latency and throughput under an open-loop load of mixed sizes: one at a time, and our engine's two policies.

Requests arrive as they do in life, whether the last one is done or not (Poisson), 80 % of 512², 15 % of 1024², 5 % of
1536², each drawn on its own grid. `one at a time` is `pipeline.generate` in the order of arrival, which is how other
servers of this model work; `fifo` and `srpt` are the engine. All sides get the same requests at the same times, with
warm text caches, in turn; the load is a share of what one at a time can bear, measured first. An image takes fewer
steps than Dev's 28, so that enough of them fit into a run; waiting scales with it, decoding does not.

    python benchmarks/load.py [--requests 120] [--steps 4] [--loads 0.6 0.9] [--rounds 1] [--threads 2]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from measure import report

from hidream.engine.loop import Engine, Options
from hidream.engine.request import Policy
from hidream.model.loading import load
from hidream.model.model import Model
from hidream.model.pipeline import generate
from hidream.request import ImageRequest
from hidream.types import Render, Size, Variant

SIZES = {512: 0.80, 1024: 0.15, 1536: 0.05}
PROMPTS = ("flat style a sailboat in the ocean", "a red apple", "two stars at night", "3d a cat on a meadow")


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    request: ImageRequest


@dataclass(frozen=True, slots=True)
class Run:
    """What one side did: seconds from arrival to image by side length, and how long it was busy."""

    latencies: dict[int, list[float]]
    busy_s: float


Serve = Callable[[list[Arrival]], Run]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 0.9])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = load(Variant.DEV)
    tokens = Engine(model).limits.tokens
    mean_s = service_s(model, arguments.steps)
    sides: dict[str, Serve] = {
        "one at a time": lambda arrivals: one_at_a_time(model, arrivals),
        "engine, fifo": lambda arrivals: through_engine(model, arrivals, Policy.FIFO, tokens),
        "engine, srpt": lambda arrivals: through_engine(model, arrivals, Policy.SRPT, tokens),
    }
    rows = []
    for share in arguments.loads:
        runs: dict[str, list[Run]] = {name: [] for name in sides}
        for seed in range(arguments.rounds):
            arrivals = poisson(arguments.requests, mean_s / share, arguments.steps, seed)
            for name, serve in sides.items():
                runs[name].append(serve(arrivals))
        rows += [row(share, name, runs[name], runs["one at a time"]) for name in sides]
    settings = {"requests": arguments.requests, "steps": arguments.steps, "rounds": arguments.rounds}
    settings |= {"tokens per step": tokens, "mean service s": round(mean_s, 3), "version": model.version}
    report("load", rows, settings)


def poisson(count: int, gap_s: float, steps: int, seed: int) -> list[Arrival]:
    """Draw the arrivals: sizes in exact shares, in random order and at random times."""
    rng = random.Random(seed)
    sides = [side for side, share in SIZES.items() for _ in range(round(share * count))]
    rng.shuffle(sides)
    at_s, arrivals = 0.0, []
    for i, side in enumerate(sides):
        at_s += rng.expovariate(1 / gap_s)
        size = Size(side, side)
        arrivals.append(
            Arrival(at_s, ImageRequest(PROMPTS[i % len(PROMPTS)], size, i, steps=steps, render=Render.NATIVE))
        )
    return arrivals


def service_s(model: Model, steps: int) -> float:
    """Mean seconds of an image of the mix, one at a time, on an idle machine."""
    seconds = {}
    for side in SIZES:
        request = ImageRequest(PROMPTS[0], Size(side, side), 0, steps=steps, render=Render.NATIVE)
        series = []
        for prompt in PROMPTS:
            started = time.perf_counter()
            generate(model, ImageRequest(prompt, request.size, 0, steps=steps, render=Render.NATIVE))
            series.append(time.perf_counter() - started)
        seconds[side] = statistics.median(series[1:])
    return sum(share * seconds[side] for side, share in SIZES.items())


def one_at_a_time(model: Model, arrivals: list[Arrival]) -> Run:
    latencies: dict[int, list[float]] = {side: [] for side in SIZES}
    waiting, busy_s, began = deque(arrivals), 0.0, time.perf_counter()
    while waiting:
        arrival = waiting.popleft()
        time.sleep(max(0.0, began + arrival.at_s - time.perf_counter()))
        started = time.perf_counter()
        generate(model, arrival.request)
        done = time.perf_counter()
        busy_s += done - started
        latencies[arrival.request.size.width].append(done - began - arrival.at_s)
    return Run(latencies, busy_s)


def through_engine(model: Model, arrivals: list[Arrival], policy: Policy, tokens: int) -> Run:
    engine = Engine(model, Options(policy=policy, tokens=tokens))
    latencies: dict[int, list[float]] = {side: [] for side in SIZES}
    waiting, busy_s, began = deque(enumerate(arrivals)), 0.0, time.perf_counter()
    while waiting or engine.busy:
        while waiting and (not engine.busy or began + waiting[0][1].at_s <= time.perf_counter()):
            time.sleep(max(0.0, began + waiting[0][1].at_s - time.perf_counter()))
            i, arrival = waiting.popleft()
            engine.add(str(i), arrival.request)
        started = time.perf_counter()
        for outcome in engine.step():
            assert outcome.error is None, outcome.error
            arrival = arrivals[int(outcome.id)]
            latencies[arrival.request.size.width].append(time.perf_counter() - began - arrival.at_s)
        busy_s += time.perf_counter() - started
    engine.close()
    return Run(latencies, busy_s)


def row(share: float, name: str, runs: list[Run], base: list[Run]) -> dict[str, object]:
    small = [latency for run in runs for latency in run.latencies[min(SIZES)]]
    base_small = [latency for run in base for latency in run.latencies[min(SIZES)]]
    every = [latency for run in runs for series in run.latencies.values() for latency in series]
    large = [latency for run in runs for latency in run.latencies[max(SIZES)]]
    return {
        "load": share,
        "side": name,
        **{f"512² p{p} s": float(np.percentile(small, p)) for p in (50, 95, 99)},
        "1536² p95 s": float(np.percentile(large, 95)),
        **{f"all p{p} s": float(np.percentile(every, p)) for p in (50, 95, 99)},
        "512² p95, times better": float(np.percentile(base_small, 95) / np.percentile(small, 95)),
        "throughput, share": sum(run.busy_s for run in base) / sum(run.busy_s for run in runs),
    }


if __name__ == "__main__":
    main()
