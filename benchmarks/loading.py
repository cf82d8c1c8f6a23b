"""Loading a checkpoint of 2 GB: time and memory against diffusers, each in a fresh process, in turn, the files cached.

The checkpoint is a diffusers folder in bfloat16, in shards, written by diffusers: the real width with few blocks. A
mapped file is read when it is used and not when it is opened; hence the second figure of each kind, after one byte of
every page has been read. Memory is what the process has more than before, over the size of the files.

    python benchmarks/loading.py [--rounds 9] [--dtype bfloat16] [--folder FOLDER] [--threads 2]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import HiDreamImageTransformer2DModel
from measure import Spread, ratio, report
from process import forget_peak, fresh, load_average, status_bytes
from torch import Tensor, nn

from hidream.model.checkpoint.checkpoint import Checkpoint, load_transformer
from hidream.model.memory.offload import own_tensors
from hidream.model.network.config import TransformerConfig
from hidream.model.resolve import DTYPES
from hidream.types import WeightFormat

CONFIG = TransformerConfig(num_layers=1, num_single_layers=2, llama_layers=(0, 1, 2))
PAGE_BYTES = 4096
SHARD = "1GB"
CPU = torch.device("cpu")


def theirs(folder: Path, dtype: torch.dtype) -> nn.Module:
    return HiDreamImageTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype)


def stored(folder: Path, dtype: torch.dtype) -> nn.Module:
    return load_transformer(Checkpoint(folder), CPU, dtype, WeightFormat.STORED)


def compute(folder: Path, dtype: torch.dtype) -> nn.Module:
    return load_transformer(Checkpoint(folder), CPU, dtype, WeightFormat.COMPUTE)


SIDES: dict[str, Callable[[Path, torch.dtype], nn.Module]] = {
    "diffusers": theirs,
    "ours, as stored": stored,
    "ours, compute type": compute,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="in which both sides would compute")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written; a temporary folder if not given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=["write", *SIDES], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.side == "write":
        print(json.dumps(write(arguments.folder)))
    elif arguments.side:
        print(json.dumps(measure(SIDES[arguments.side], arguments.folder, DTYPES[arguments.dtype])))
    else:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            compare(folder, arguments.rounds, arguments.threads, arguments.dtype)


def compare(folder: str, rounds: int, threads: int, dtype: str) -> None:
    """Run all sides in turn and report; the first round only brings the files into the cache."""
    load = load_average()
    options = ("--folder", folder, "--threads", str(threads), "--dtype", dtype)
    size = fresh(__file__, "--side", "write", *options)["nbytes"]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for i in range(1 + rounds):
        for side in SIDES:
            taken = fresh(__file__, "--side", side, *options)
            found[side] += [taken] if i else []
    base = found["diffusers"]
    rows = [row(side, taken, base, size) for side, taken in found.items()]
    settings = {"file_gb": size / 1e9, "dtype": dtype, "rounds": rounds, "shards": SHARD, "load": load}
    report("loading", rows, settings | {"threads": threads})


def row(side: str, taken: list[dict[str, float]], base: list[dict[str, float]], size: int) -> dict[str, object]:
    cells: dict[str, object] = {"side": side}
    for when in ("loaded", "touched"):
        seconds = [each[f"{when}_s"] for each in taken]
        memory = statistics.median(each[f"{when}_bytes"] for each in taken)
        cells |= {
            f"{when} ms": str(Spread.of(seconds)).strip(),
            f"{when}: ratio": ratio([each[f"{when}_s"] for each in base], seconds),
            f"{when}: memory/file": memory / size,
        }
    return cells | {"peak GB in all": statistics.median(each["peak_bytes"] for each in taken) / 1e9}


def write(folder: Path) -> dict[str, int]:
    """Write the checkpoint as diffusers does; returns the bytes of its weights."""
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(CONFIG).items()}
    with torch.device("meta"):
        model = HiDreamImageTransformer2DModel(**config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder / "transformer", max_shard_size=SHARD)
    return {"nbytes": sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))}


def measure(load: Callable[[Path, torch.dtype], nn.Module], folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Load in this process; returns seconds and bytes, counted from before, and the process's whole peak."""
    forget_peak()
    before = status_bytes("VmRSS")
    started = time.perf_counter()
    model = load(folder, dtype)
    loaded = time.perf_counter() - started, status_bytes("VmHWM") - before
    touch(value for module in model.modules() for _, value in own_tensors(module))
    touched = time.perf_counter() - started, status_bytes("VmHWM") - before
    names = ("loaded_s", "loaded_bytes", "touched_s", "touched_bytes", "peak_bytes")
    return dict(zip(names, (*loaded, *touched, status_bytes("VmHWM")), strict=True))


def touch(values: Iterable[Tensor]) -> None:
    """Read one byte of every page, so that it is there."""
    for value in values:
        value.detach().flatten().view(torch.uint8)[::PAGE_BYTES].sum()


if __name__ == "__main__":
    main()
