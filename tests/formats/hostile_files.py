"""Writes damaged files, opens each as a worker would, and counts the faults.

    python hostile_files.py FOLDER KINDS SEED COUNT

A fault is an exception that is none of ours, a message of more than a line, more than SECONDS of computing or more than
GROWTH_BYTES of memory for a file of a few megabytes. The last line of the output is JSON. A process of its own, whose
memory is limited: a file that asks for terabytes ends it, not the tests. File n of a kind depends on its number alone.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
import warnings
from functools import partial as partial_of
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save

import comfy_files
import llama_cpp
from hidream.errors import HiDreamError
from hidream.formats.convert import convert, format_of
from hidream.formats.detect import config_of, read, read_shapes
from hidream.formats.gguf_file import write_gguf
from hidream.formats.lora_file import read_lora
from hidream.formats.regular_file import sha256_of
from hidream.formats.targets import ConversionOptions
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded, load_transformer
from hidream.model.checkpoint.encoders import load_encoder, load_tokenizer
from hidream.model.checkpoint.inferred import published_config
from hidream.model.checkpoint.lora_folder import LoraFolder
from hidream.model.latents.autoencoder import load_autoencoder
from hidream.model.memory.plan_input import PlanRequest, lora_values, partial
from hidream.model.network.lora import checked_bytes, deltas, layers, match, wants
from hidream.model.text.text_encoders import _check_tokenizer
from hidream.types import Size, Variant

SECONDS = 5.0
GROWTH_BYTES = 400 * 2**20
ADDRESS_SPACE_BYTES = 4 * 2**30
CPU, DTYPE = torch.device("cpu"), torch.float32
NANO = embedded(Variant.DEV)
LAYER = "double_stream_blocks.0.block.attn1.to_q"
WIDTH = 192

NUMBERS = (0, 1, -1, 2, 3, 7, 31, 64, 192, 255, 2**16, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1)
VALUES = (
    *NUMBERS,
    *(1.5, 1e300, 1e999, -1e999, float("nan"), 10**400),
    *("", "x", "x\ny", "\0", "../x", "/etc/passwd", "é" * 50, "x" * 5000, "F32", "F8_E8M0", "F4", "U64", "BOOL", "C64"),
    *(None, True, False, [], {}, [[]], [1] * 2000, [1, 2], {"a": 1}),
    *("(a+)+$", ".*" * 50, "[", "x{1000}", "\\1", "(?=a)"),
)


def tampered(value: object, dice: random.Random, depth: int = 0) -> object:
    """JSON with one place changed."""
    if isinstance(value, dict | list) and value and depth < 6 and dice.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = dice.choice(keys)
        copy = value.copy()
        act = dice.random()
        if act < 0.1:
            del copy[key]
        elif act < 0.2 and isinstance(copy, dict):
            copy[dice.choice(("", "x\ny", "__metadata__", "a" * 3000, *keys[:3]))] = copy.pop(key)
        elif act < 0.25 and isinstance(copy, list):
            copy.append(copy[key])
        else:
            copy[key] = tampered(copy[key], dice, depth + 1)
        return copy
    if dice.random() < 0.05:
        deep: object = 1
        for _ in range(dice.choice((20, 40, 900))):
            deep = [deep] if dice.random() < 0.5 else {"a": deep}
        return deep
    if type(value) is int and dice.random() < 0.3:
        return value + dice.choice((-1, 1, 8, 2**20, 10**9))
    return dice.choice(VALUES)


def text_of(value: object, dice: random.Random) -> bytes:
    text = json.dumps(value)
    if dice.random() < 0.1:
        at = dice.randrange(len(text) + 1)
        text = text[:at] + dice.choice(("[" * 100_000, "{", "}", '"', ",", "1e999", "NaN", '"a":1,"a":2,')) + text[at:]
    return text.encode()


def bytes_tampered(whole: bytes, dice: random.Random) -> bytes:
    """Bytes, numbers and lengths of a header changed; sometimes cut, or with something put in."""
    torn = bytearray(whole)
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(min(len(torn), dice.choice((64, 1024, 20_000))))
        match dice.randrange(5):
            case 0:
                torn[at] = dice.randrange(256)
            case 1:
                torn[at : at + 8] = struct.pack("<Q", dice.choice(NUMBERS[3:]) % 2**64)
            case 2:
                torn[at : at + 4] = struct.pack("<I", dice.choice(NUMBERS) % 2**32)
            case 3:
                del torn[at : at + dice.choice((1, 4, 8))]
            case _:
                torn[at:at] = dice.randbytes(dice.choice((1, 4, 8)))
    return bytes(torn[: dice.randrange(len(torn))] if dice.random() < 0.1 else torn)


def safetensors_tampered(whole: bytes, dice: random.Random) -> bytes:
    length = int.from_bytes(whole[:8], "little")
    act = dice.random()
    if act < 0.2:
        return bytes_tampered(whole, dice)
    header = json.loads(whole[8 : 8 + length])
    if act < 0.55:
        for _ in range(dice.choice((1, 1, 2, 3))):
            header = tampered(header, dice)
        text = text_of(header, dice)
        return len(text).to_bytes(8, "little") + text + whole[8 + length :]
    stated = header.get("__metadata__")
    if stated and act < 0.75:  # metadata whose texts are JSON
        key = dice.choice(list(stated))
        try:
            stated[key] = text_of(tampered(json.loads(stated[key]), dice), dice).decode()
        except ValueError:
            stated[key] = str(dice.choice(VALUES))
    tensors = load(whole)
    for _ in range(dice.choice((0, 1, 2, 4))):
        key = dice.choice(list(tensors))
        tensors[key] = tensor_tampered(tensors[key], dice)
        if dice.random() < 0.1:
            del tensors[dice.choice(list(tensors))]
        if not tensors:
            break
    return save(tensors, stated)


def tensor_tampered(tensor: torch.Tensor, dice: random.Random) -> torch.Tensor:
    sizes = (0, 1, 2, 4, 192, 1000, 30_000)
    match dice.randrange(6):
        case 0:
            return torch.zeros(dice.choice(sizes), dice.choice((1, 1, 2, 0)), dtype=tensor.dtype)
        case 1:
            return torch.ones(dice.choice((1, 2)), dice.choice(sizes)).to(tensor.dtype)
        case 2:
            kinds = (
                torch.float16,
                torch.int64,
                torch.bool,
                torch.uint8,
                torch.float8_e4m3fn,
                torch.float8_e5m2,
                torch.uint16,
            )
            return tensor.float().to(dice.choice(kinds))
        case 3:
            value = dice.choice((torch.nan, torch.inf, 0.0, -1.0, 3e38, 2.0**40))
            return torch.full(tensor.shape, value).to(tensor.dtype)
        case 4:
            return torch.tensor(dice.choice((0, 1, 2**40, -1)))
        case _:
            return tensor.flatten()[: dice.choice((0, 1, 5))].clone()


def tiny() -> dict[str, torch.Tensor]:
    import tiny as tiny_model

    return tiny_model.ours(tiny_model.reference(), kernels=tiny_model.SEPARATE).state_dict()


def asked(loras: Path | None = None) -> PlanRequest:
    return PlanRequest(Variant.DEV, Size(256, 256), None, DTYPE, loras)


def converted(path: Path) -> None:
    for name, kind in (("out.gguf", "Q8_0"), ("out.safetensors", "int8"), ("out", None)):
        target = path.with_name(name)
        try:
            convert(
                path, target, ConversionOptions(format_of(target), kind, 2**30, True), published_config, lambda *_: None
            )
        except HiDreamError as error:
            said(error)


def said(error: HiDreamError) -> None:
    assert error.message.isprintable(), f"not one line: {error.message!r:.300}"
    assert len(error.message) < 4000, f"{len(error.message)} characters: {error.message[:300]}"


# --- what there is: a kind's file, how it is tampered with, and how it is opened


class Part:
    """One part in one file, or in a folder with its configuration beside it."""

    def __init__(self, folder: Path, part: str, whole: bytes, suffix: str, config: dict | None = None) -> None:
        self.folder, self.part, self.whole, self.suffix, self.config = folder, part, whole, suffix, config

    def write(self, dice: random.Random) -> Path:
        field = self.folder / "it"
        shutil.rmtree(field, ignore_errors=True)
        field.mkdir()
        path = field / f"model{self.suffix}"
        if self.config is None:
            change = safetensors_tampered if self.suffix == ".safetensors" else bytes_tampered
            path.write_bytes(change(self.whole, dice))
            return path
        path.write_bytes(self.whole)
        beside = {"config.json": self.config}
        if dice.random() < 0.3:
            beside["model.safetensors.index.json"] = {"metadata": {}, "weight_map": {"a": path.name, "b": path.name}}
        for name, value in beside.items():
            (field / name).write_bytes(text_of(tampered(value, dice), dice))
        return field

    def open(self, path: Path) -> None:
        names = {"transformer": "transformer", "vae": "vae", "text_encoder": "clip_l", "text_encoder_3": "t5"}
        checkpoint = Checkpoint(**{names.get(self.part, "llama"): path})
        for call in (read, read_shapes, config_of, converted):
            attempt(call, path)
        attempt(partial, checkpoint, asked())
        match self.part:
            case "transformer":
                attempt(load_transformer, checkpoint, CPU, DTYPE)
            case "vae":
                attempt(load_autoencoder, checkpoint, CPU, DTYPE)
            case _:
                attempt(load_encoder, checkpoint, self.part, CPU, DTYPE)


def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in tensors.items()}


class Loras:
    """A folder of one LoRA."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.manual_seed(0)
        n, up = WIDTH, torch.randn
        square = {"w1": up(8, 8), "w2": up(24, 24)}
        settings = {
            "r": 4,
            "lora_alpha": 8,
            "peft_type": "LOHA",
            "alpha_pattern": {"to_q": 2, "attn1.*": 3},
            "rank_pattern": {"to_.": 4},
        }
        low = {"lora_A.weight": up(4, n), "lora_B.weight": up(n, 4)}
        flat = LAYER.replace(".", "_")
        down_up = {"lora_down.weight": up(4, n), "lora_up.weight": up(n, 4), "alpha": torch.tensor(2.0)}
        tucker = {"w1_a": up(8, 2), "w1_b": up(2, 8), "w2_a": up(4, 24), "w2_b": up(4, 24), "t2": up(4, 4)}
        loha = {name: up(4, n) for name in ("w1_a", "w1_b", "w2_a", "w2_b")} | {"t1": up(4, 4), "t2": up(4, 4)}
        self.files = [
            save(under(f"transformer.{LAYER}.", low), {"lora_adapter_metadata": json.dumps(settings)}),
            save(under(f"lora_unet_{flat}.", down_up)),
            save(under(f"{LAYER}.", low | {"dora_scale": up(n, 1)})),
            save(under(f"lycoris_{flat}.lokr_", square)),
            save(under(f"lycoris_{flat}.lokr_", tucker)),
            save(under(f"{LAYER}.hada_", loha) | {f"{LAYER}.alpha": torch.tensor(2.0)}),
        ]
        with torch.no_grad():
            self.layers = layers(load_transformer(NANO, CPU, DTYPE))
        self.config = NANO.config("transformer")

    def write(self, dice: random.Random) -> Path:
        path = self.folder / "loras"
        shutil.rmtree(path, ignore_errors=True)
        (path / "of-peft").mkdir(parents=True)
        whole = dice.choice(self.files)
        (path / "it.safetensors").write_bytes(safetensors_tampered(whole, dice))
        (path / "of-peft" / "adapter_model.safetensors").write_bytes(self.files[0])
        settings = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 2}, "use_rslora": True, "peft_type": "LORA"}
        (path / "of-peft" / "adapter_config.json").write_bytes(text_of(tampered(settings, dice), dice))
        return path

    def open(self, path: Path) -> None:
        from hidream.model.network.config import TransformerConfig

        attempt(lora_values, path, TransformerConfig.from_json(self.config))
        attempt(read_lora, path / "it.safetensors")
        attempt(lambda: match(read_lora(path / "of-peft", wants("x", self.layers)), self.layers))
        folder = LoraFolder(path, self.layers)
        attempt(lambda: checked_bytes([(folder.named("it"), 1.0)], CPU, torch.bfloat16))
        attempt(lambda: deltas([(folder.named("it"), 1.0)], CPU, torch.bfloat16))
        assert folder.report("it").isprintable()


class Tokenizer:
    """A folder with a tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, dice: random.Random) -> Path:
        path = self.folder / "tokenizers"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(NANO.part("tokenizer"), path / "tokenizer")
        file = path / "tokenizer" / dice.choice(("tokenizer.json", "tokenizer_config.json"))
        file.write_bytes(text_of(tampered(json.loads(file.read_text()), dice), dice))
        return path

    def open(self, path: Path) -> None:
        attempt(lambda: _check_tokenizer("x", load_tokenizer(Checkpoint(tokenizers=path), "tokenizer"), 2400))


def comfy(folder: Path, part: str) -> Part:
    """A part of nano in one file that says its numbers."""
    config = {"config": comfy_files.config_of(part)}
    return Part(folder, part, save(comfy_files.tensors_of(part), config), ".safetensors")


def beside(folder: Path, part: str) -> Part:
    """A part of nano whose numbers stand in a file beside it."""
    config = json.loads(comfy_files.config_of(part))
    return Part(folder, part, save(comfy_files.tensors_of(part)), ".safetensors", config)


def scaled(folder: Path) -> Part:
    """T5 in eight bits, with scales."""
    how = {"layers": {"shared": {"format": "float8_e4m3fn"}}}
    stated = {"config": comfy_files.config_of("text_encoder_3"), "_quantization_metadata": json.dumps(how)}
    tensors = comfy_files.scaled_fp8(comfy_files.tensors_of("text_encoder_3"))
    return Part(folder, "text_encoder_3", save(tensors, stated), ".safetensors")


def nf4(folder: Path) -> Part:
    """Two matrices of bitsandbytes."""
    recorded = load_file(Path(__file__).parent / "fixtures" / "bitsandbytes.safetensors")
    whole = save({f"double_stream_blocks.0.{key}": tensor for key, tensor in recorded.items()})
    return Part(folder, "transformer", whole, ".safetensors")


def difference(folder: Path) -> Part:
    """A transformer as the difference to another one, which lies two folders up (`Part.write` makes the first)."""
    whole, base = tiny(), folder.parent / "dev" / "it" / "base.safetensors"
    base.parent.mkdir(parents=True, exist_ok=True)
    base.write_bytes(save({key: tensor.half() for key, tensor in whole.items()}))
    tensors = {key: tensor for key, tensor in whole.items() if tensor.dim() != 2}
    for key in whole.keys() - tensors.keys():
        rows = len(whole[key])
        tensors[f"{key}.difference"] = torch.ones(whole[key].shape, dtype=torch.int8)
        tensors[f"{key}.scale"] = torch.full((rows, 1), 1e-3, dtype=torch.bfloat16)
    stated = {"difference": json.dumps({"base": "dev", "sha256": sha256_of(base)})}
    return Part(folder, "transformer", save(tensors, stated), ".safetensors")


def tiny_transformer(folder: Path) -> Part:
    """A transformer with its configuration beside it."""
    import tiny as tiny_model

    config = {"_class_name": "HiDreamImageTransformer2DModel", **dataclasses.asdict(tiny_model.CONFIG)}
    return Part(folder, "transformer", save(tiny()), ".safetensors", config)


def gguf(folder: Path) -> Part:
    """A transformer in GGUF."""
    write_gguf(folder / "whole", tiny(), "Q8_0")
    return Part(folder, "transformer", (folder / "whole").read_bytes(), ".gguf")


def of_llama_cpp(folder: Path, name: str, part: str) -> Part:
    """An encoder in GGUF."""
    import test_gguf_encoders

    file = llama_cpp.write(folder / "whole", getattr(test_gguf_encoders, name)(), name, "Q8_0")
    return Part(folder, part, file.read_bytes(), ".gguf")


KINDS = {
    "lora": Loras,
    "tokenizer": Tokenizer,
    "clip": partial_of(comfy, part="text_encoder"),
    "vae": partial_of(comfy, part="vae"),
    "scaled": scaled,
    "nf4": nf4,
    "difference": difference,
    "config-clip": partial_of(beside, part="text_encoder"),
    "config-vae": partial_of(beside, part="vae"),
    "config-transformer": tiny_transformer,
    "gguf": gguf,
    "gguf-llama": partial_of(of_llama_cpp, name="llama", part="text_encoder_4"),
    "gguf-t5": partial_of(of_llama_cpp, name="t5", part="text_encoder_3"),
}


def attempt(call, *given: object) -> None:
    """Call, where an error of ours is all right."""
    try:
        call(*given)
    except HiDreamError as error:
        said(error)


def peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    folder, kinds, seed, count = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]), int(sys.argv[4])
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).parent.parent / "model"))
    sys.path.append(str(Path(__file__).parent))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))

    def too_long(*_: object) -> None:
        raise TimeoutError("it takes too long")

    signal.signal(signal.SIGPROF, too_long)
    faults: list[str] = []
    for name in kinds:
        kind = KINDS[name](folder)
        for n in range(count):
            dice = random.Random(f"{name} {seed} {n}")
            path = kind.write(dice)
            Path("/proc/self/clear_refs").write_text("5")
            before, start = resident_bytes(), time.process_time()
            signal.setitimer(signal.ITIMER_PROF, 4 * SECONDS)
            fault = ""
            try:
                kind.open(path)
            except BaseException as error:
                where = traceback.extract_tb(error.__traceback__)
                ours = next((f for f in reversed(where) if "/src/hidream/" in f.filename), where[-1])
                fault = (
                    f"{type(error).__name__} at {Path(ours.filename).name}:{ours.lineno} {ours.name}: {error!s:.300}"
                )
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            took, grown = time.process_time() - start, peak_bytes() - before
            if not fault and took > SECONDS:
                fault = f"took {took:.1f} s"
            if not fault and grown > GROWTH_BYTES:
                fault = f"grew by {grown / 2**20:.0f} MiB"
            if fault:
                faults.append(f"{name} {seed} {n}: {fault}")
                sys.stderr.write(faults[-1].replace("\n", "\\n") + "\n")
                sys.stderr.flush()
    sys.stdout.write(json.dumps({"files": count * len(kinds), "faults": faults}) + "\n")


if __name__ == "__main__":
    main()
