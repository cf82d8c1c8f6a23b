"""The real configuration of 17 B parameters, on the CPU and within little memory.

Writes a file of random weights in the layout of a published one (GGUF in Q4_0, or ComfyUI's plain fp8), then opens it
in a fresh process as the product does, kept as stored and mapped, and makes one denoising step at 512×512 in float32.
Says for each phase what it took, and fails if the answer is not finite or the memory is not less than 24 GB.

    python benchmarks/large.py [--kind Q4_0|fp8] [--folder FOLDER] [--keep] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import report
from process import fresh, load_average, status_bytes, watched
from torch import Tensor

from hidream.formats.comfy import StoredTensor
from hidream.formats.gguf_file import EXACT, write_gguf
from hidream.formats.gguf_grids import GGUF_TYPES
from hidream.formats.quantized import from_blocks
from hidream.formats.retype import pieces
from hidream.formats.safetensors_writer import METADATA, write_safetensors
from hidream.model.checkpoint.checkpoint import Checkpoint, load_transformer
from hidream.model.network.config import TransformerConfig
from hidream.model.network.linear import Linear
from hidream.model.network.ragged_batch import RaggedBatch
from hidream.model.network.transformer import Transformer
from hidream.model.sampling import sampler
from hidream.parts import Kind
from hidream.types import SAMPLING_PRESETS, Conformance, Variant

GRID = (32, 32)  # tokens of 512 × 512
TEXT_TOKENS, LLAMA_LAYERS = 128, 32
LIMIT_BYTES = 24 * 10**9
Q4_0_SPREAD = (sum((q - 8) ** 2 for q in range(16)) / 16) ** 0.5  # of a block of random bytes whose scale is 1
SLACK = 2**22  # values by which the matrices begin apart
E4M3 = torch.float8_e4m3fn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["Q4_0", "fp8"], default="Q4_0")
    parser.add_argument("--folder", type=Path, help="where the file is written; a temporary folder if not given")
    parser.add_argument("--keep", action="store_true", help="keep the file, and use the one that is there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        file = folder / ("hidream-random-Q4_0.gguf" if arguments.kind == "Q4_0" else "hidream_random_fp8.safetensors")
        try:
            if not (arguments.keep and file.is_file()):
                folder.mkdir(parents=True, exist_ok=True)
                write(file, arguments.kind)
            size = file.stat().st_size
            load = load_average()
            found = fresh(__file__, "--measure", str(file), "--threads", str(arguments.threads))
        finally:
            if not arguments.keep:
                file.unlink(missing_ok=True)
    settings = {"kind": arguments.kind, "file_gb": size / 1e9, "size": "512x512", "dtype": "float32", "load": load}
    settings |= {"threads": arguments.threads, **found["whole"]}
    print(f"{file.name}, {size / 1e9:.2f} GB; peak resident {found['whole']['peak_resident_gb']:.2f} GB")
    report("large", found["phases"], settings)


def write(file: Path, kind: str) -> None:
    """Write all tensors of the real configuration, one at a time."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Transformer(TransformerConfig()).state_dict().items()}
    torch.manual_seed(0)
    if kind == "Q4_0":
        write_gguf(file, tensors(shapes, blocks_bank, q4_0), kind)
        return
    made = pieces(tensors(shapes, fp8_bank, fp8), Kind.TRANSFORMER, None, (E4M3, torch.bfloat16))
    write_safetensors(file, made, METADATA, lambda nbytes: None)


def tensors(
    shapes: dict[str, torch.Size],
    bank_of: Callable[[int, int], Tensor],
    view: Callable[[Tensor, torch.Size, int], StoredTensor],
) -> dict[str, StoredTensor]:
    """Random weights that keep a signal's variance; each matrix is a view of its width's bank, from a place of its own.

    What is no matrix of a linear layer: biases of 0.02, norms of 1, and the gates that choose the experts.
    """
    matrices = {name: s for name, s in shapes.items() if len(s) == 2 and not name.endswith(EXACT)}
    largest = max(shape.numel() for shape in matrices.values()) + SLACK
    banks = {width: bank_of(largest, width) for width in {shape[1] for shape in matrices.values()}}
    made: dict[str, StoredTensor] = {}
    for name, shape in shapes.items():
        if name in matrices:
            made[name] = view(banks[shape[1]], shape, int(torch.randint(SLACK, ())))
        elif name.endswith("_norm.weight") or name.endswith("_norm_t.weight"):
            made[name] = torch.ones(shape)
        else:
            made[name] = torch.randn(shape) * (0.02 if len(shape) == 1 else shape[1] ** -0.5)
    return made


def blocks_bank(values: int, width: int) -> Tensor:
    """Make blocks of Q4_0 [n, 18] from random bytes, scaled for matrices of `width` columns."""
    block = GGUF_TYPES["Q4_0"]
    bank = torch.randint(256, (values // block.values, block.nbytes), dtype=torch.uint8)
    scale = torch.tensor([width**-0.5 / Q4_0_SPREAD], dtype=torch.float16)
    bank[:, :2] = scale.view(torch.uint8)
    return bank


def q4_0(bank: Tensor, shape: torch.Size, start: int) -> StoredTensor:
    """Cut a matrix from a bank of blocks."""
    values = GGUF_TYPES["Q4_0"].values
    first = start // values
    data = bank[first : first + shape.numel() // values]
    return from_blocks("Q4_0", data.reshape(shape[0], -1), shape)


def fp8_bank(values: int, width: int) -> Tensor:
    """Make normal values in float8 for matrices of `width` columns."""
    return torch.randn(values).mul_(width**-0.5).to(E4M3)


def fp8(bank: Tensor, shape: torch.Size, start: int) -> StoredTensor:
    """Cut a matrix from a bank of values."""
    return bank[start : start + shape.numel()].view(shape)


@torch.inference_mode()
def measure(file: Path) -> dict[str, Any]:
    """Open a file and make one step, in this process; returns rows of phases, and what holds for the whole."""
    config, rows = TransformerConfig(), []
    resident_before = status_bytes("VmRSS")
    phase = partial(timed, rows)
    with phase("open"):
        transformer = load_transformer(Checkpoint(transformer=file), torch.device("cpu"), torch.float32)
    assert transformer.config == config, "the file was not recognised as the published configuration"
    t5 = torch.randn(1, TEXT_TOKENS, config.caption_channels[0])
    llama = torch.randn(LLAMA_LAYERS, 1, TEXT_TOKENS, config.caption_channels[1])
    latent = torch.randn(1, config.in_channels, GRID[0] * config.patch_size, GRID[1] * config.patch_size)
    preset = SAMPLING_PRESETS[Variant.DEV]
    times = sampler.schedule(preset.sampler, preset.steps, preset.shift, Conformance.DIFFUSERS).timesteps
    with phase("condition"):
        c = transformer.condition(t5, llama, torch.randn(1, config.text_emb_dim), GRID)
    with phase(f"modulations of {len(times)} steps"):
        modulations = transformer.modulations(times, c)
    with phase("one step"):
        velocity = transformer.velocity([latent], [modulations[0]], RaggedBatch.of([c]))[0]
    seconds, cpu_seconds = dequantising(transformer)
    rows.append({"phase": "  of which dequantising", "s": seconds, "CPU s": cpu_seconds, **dict.fromkeys(MEMORY, "–")})
    assert velocity.shape == latent.shape, f"the answer has the shape {list(velocity.shape)}"
    assert bool(velocity.isfinite().all()), "the answer is not finite"
    peak = status_bytes("VmHWM")
    assert peak < LIMIT_BYTES, f"{peak / 1e9:.1f} GB were resident; accepted: less than {LIMIT_BYTES / 1e9:.0f}"
    whole = {"peak_resident_gb": peak / 1e9, "resident_before_gb": resident_before / 1e9}
    return {"phases": rows, "whole": whole | {"velocity_std": float(velocity.std())}}


MEMORY = ("anonymous GB", "resident GB")


@contextmanager
def timed(rows: list[dict[str, object]], phase: str) -> Iterator[None]:
    """Add a phase's time and peaks to the rows; time on the processors too, of which others take their part."""
    with watched() as peak:
        started, cpu_started = time.perf_counter(), time.process_time()
        yield
        taken = {"s": time.perf_counter() - started, "CPU s": time.process_time() - cpu_started}
    memory = dict(zip(MEMORY, (peak.anonymous / 1e9, peak.resident / 1e9), strict=True))
    rows.append({"phase": phase, **taken, **memory})


def dequantising(transformer: Transformer) -> tuple[float, float]:
    """Seconds that one step spends on making matrices dense, told from one double and one single block; CPU's too."""
    seconds = cpu_seconds = 0.0
    for layers in (transformer.double_stream_blocks, transformer.single_stream_blocks):
        found = [(name, m) for name, m in layers[0].named_modules() if isinstance(m, Linear)]
        started, cpu_started = time.perf_counter(), time.process_time()
        for name, layer in found:
            if "adaLN" not in name:
                layer.dense(torch.float32)
        seconds += (time.perf_counter() - started) * len(layers)
        cpu_seconds += (time.process_time() - cpu_started) * len(layers)
    return seconds, cpu_seconds


if __name__ == "__main__":
    main()
