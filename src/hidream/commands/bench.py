"""`hidream bench`: seconds that an image takes on this machine, as a table and one line of JSON."""

from __future__ import annotations

import platform
import re
import statistics
import time
from pathlib import Path
from typing import Any

import click

from hidream import __version__
from hidream.commands import printing, values
from hidream.commands.grammar import Command, Flag, Given
from hidream.commands.progress import bar
from hidream.commands.setting_flags import configured, model_flags, variant_flag
from hidream.commands.threads import let_threads_sleep
from hidream.commands.values import Refused, Value
from hidream.settings.tables import Settings
from hidream.types import Size, Timings

PROMPT, SEED = "a fox in the snow", 1
SIZES = (Size(512, 512), Size(1024, 1024))
ROUNDS_MAX = 1000
HEAD = ("size", "seconds an image", "fastest", "text", "denoise", "decode")


def _bench(given: Given, config: Settings) -> int:
    let_threads_sleep()
    from hidream.worker.garbage import gc_frozen

    variant, config = configured(given, config)
    started = time.perf_counter()
    with bar(f"loading hidream-i1-{variant}", "images") as display:
        with gc_frozen():
            from hidream.library.pipeline import Pipeline
            from hidream.worker.loading import load_configured

            pipe = Pipeline(load_configured(variant, config))
        load_s = time.perf_counter() - started
        sizes, rounds = given.sizes or SIZES, given.rounds
        display.show("generating", done=0, total=len(sizes) * (rounds + 1))
        rows = []
        for i, size in enumerate(sizes):
            runs = []
            for round_ in range(rounds + 1):  # the first one warms up
                began = time.perf_counter()
                prompt = f"{PROMPT}, {size}, {round_}"  # a new one each time: its text is encoded, not remembered
                image = pipe(
                    prompt, size=str(size), seed=SEED, num_inference_steps=given.steps, enable_safety_checker=False
                )
                runs.append((time.perf_counter() - began, image.timings))
                display.show(done=i * (rounds + 1) + round_ + 1)
            rows.append(_row(size, runs[1:]))
    facts = _machine() | {"version": pipe.version, "device": pipe.device, "load_s": round(load_s, 2), "rounds": rounds}
    if not given.json:
        for line in printing.table([HEAD, *(_cells(row) for row in rows)]):
            click.echo(line)
    printing.json_line({**facts, "steps": given.steps or variant.steps, "images": rows})
    return 0


def _row(size: Size, runs: list[tuple[float, Timings]]) -> dict[str, Any]:
    seconds = [total for total, _ in runs]
    timings = [timings for _, timings in runs]
    phases = {name: round(statistics.median(getattr(each, f"{name}_s") for each in timings), 4) for name in HEAD[3:]}
    return {
        "size": str(size),
        "median_s": round(statistics.median(seconds), 4),
        "fastest_s": round(min(seconds), 4),
        **{f"{name}_s": value for name, value in phases.items()},
    }


def _cells(row: dict[str, Any]) -> list[object]:
    return [row["size"], *(f"{row[name]:.3f}" for name in row if name != "size")]


def _machine() -> dict[str, Any]:
    """What a reader of the figures has to know about the machine."""
    import torch

    cards = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "hidream": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": _cpu_name(),
        "cards": cards,
        "system": platform.platform(terse=True),
    }


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _sizes(typed: str) -> tuple[Size, ...]:
    return tuple(Size.parse(each) for each in typed.split(","))


def _rounds(typed: str) -> int:
    rounds = values.integer(typed)
    if not 1 <= rounds <= ROUNDS_MAX:
        raise Refused(typed, "a number of rounds", f"1 to {ROUNDS_MAX}")
    return rounds


BENCH = Command(
    _bench,
    [
        Flag(
            ["--sizes"],
            type=Value(_sizes, "sizes"),
            metavar="SIZES",
            help=f"sizes, separated by commas (default: {','.join(map(str, SIZES))})",
        ),
        Flag(
            ["--rounds"], type=Value(_rounds, "rounds"), default=5, metavar="N", help="images of each size (default: 5)"
        ),
        Flag(
            ["--steps"], type=Value(values.integer, "steps"), metavar="N", help="steps (default: that of the variant)"
        ),
        variant_flag(),
        *model_flags(),
    ],
    extras="torch",
    details="The last line is JSON, with the machine: send it with a report. Medians, after one image that warms up.",
    examples=["hidream bench", "hidream bench --sizes 1024x1024 --rounds 3 --json"],
)
