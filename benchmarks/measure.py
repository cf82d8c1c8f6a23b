"""What every benchmark shares: interleaved timing, medians with spread, a table, and one JSON line for machines."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of a series, in milliseconds."""

    median_ms: float
    low_ms: float
    high_ms: float

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        """Summarise a series of seconds."""
        low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        return cls(middle * 1e3, low * 1e3, high * 1e3)

    def __str__(self) -> str:
        return f"{self.median_ms:9.2f} [{self.low_ms:.2f}–{self.high_ms:.2f}]"


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    repeats: int = 1,
) -> dict[str, list[float]]:
    """Run all sides in turn, `rounds` times, so that what else the machine does falls on all alike; seconds of a call.

    `time.process_time` as the clock leaves out what other programs take of the processors. With `repeats` a side is
    called as often in its turn, after one call that is not counted: a short one would pay for what its neighbour has
    left in the caches, in a fixed order always the same.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(warm_up + rounds):
        for name, run in sides.items():
            if repeats > 1:
                _timed(run, 1, clock)
            taken = _timed(run, repeats, clock)
            if i >= warm_up:
                seconds[name].append(taken)
    return seconds


def _timed(run: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds of one of `repeats` calls, until the device is done."""
    started = clock()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - started) / repeats


def ratio(base: list[float], other: list[float]) -> float:
    """How many times faster `other` is than `base`: the median over the rounds, each compared with itself."""
    return statistics.median(b / o for b, o in zip(base, other, strict=True))


def report(name: str, rows: list[dict[str, object]], settings: Mapping[str, object]) -> None:
    """Print the rows as a table and, as the last line, everything as JSON."""
    columns = list(rows[0])
    widths = [max(len(c), *(len(_cell(row[c])) for row in rows)) for c in columns]
    print("  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)))
    for row in rows:
        print("  ".join(_cell(row[c]).ljust(w) for c, w in zip(columns, widths, strict=True)))
    print(json.dumps({"benchmark": name, "environment": environment(), "settings": dict(settings), "rows": rows}))


def environment() -> dict[str, object]:
    """Hardware, versions and commit of this run."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "diffusers", "transformers", "hidream")},
        "commit": commit.stdout.strip() or None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
