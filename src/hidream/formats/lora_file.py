"""LoRA files: safetensors of any published layout to adapters, told apart by their keys.

Shapes: I inputs and O outputs of the layer that is changed, R rank.

| keys of one layer                                         | written by                                     |
|-----------------------------------------------------------|------------------------------------------------|
| `transformer.X.lora_A.weight`, `.lora_B.weight`           | diffusers, PEFT (`base_model.model.X`)         |
| `diffusion_model.X.lora_A.weight`, `.lora_B.weight`       | ai-toolkit, diffusion-pipe                     |
| `transformer.X.lora_down.weight`, `.lora_up.weight`       | OneTrainer                                     |
| `lora_unet_X.lora_down.weight`, X with `_` for `.`        | kohya's trainers                               |
| `lycoris_X.lokr_w1`, `.lokr_w2`, or their `_a` and `_b`   | LyCORIS, SimpleTuner                           |
| `.alpha` beside any of them                               | strength: alpha over rank; without it 1        |
| `.lora_magnitude_vector` or `.dora_scale` beside them     | DoRA                                           |

PEFT writes alpha into `adapter_config.json`, diffusers into the file's metadata. Knows files and keys; which layers a
model has, `model/lora.py` knows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hidream.errors import CheckpointError

ACCEPTED = (
    "accepted: safetensors with lora_A/lora_B, lora_down/lora_up or lokr_w1/lokr_w2 tensors, whose keys start with "
    "transformer., diffusion_model., lora_unet_, lycoris_ or the layer's name"
)
FILE_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT and diffusers call the file in a folder that they write."""

PARTS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_A.default.weight": "down",
    "lora_B.default.weight": "up",
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "alpha": "alpha",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude",
    **{f"lokr_{name}": name for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
"""What a tensor is, by the end of its key."""

COMPLETE = [
    {"down", "up"},
    *(w1 | w2 for w1 in ({"w1"}, {"w1_a", "w1_b"}) for w2 in ({"w2"}, {"w2_a", "w2_b"}, {"w2_a", "w2_b", "t2"})),
]
"""The parts that make an adapter."""

PREFIX = re.compile(
    r"base_model\.model\.|(model\.)?diffusion_model\.|transformer\.|lycoris[._]|lora_(unet|transformer)_"
)
TEXT_ENCODER = re.compile(r"(base_model\.model\.)?(lora_|lycoris_)?(te\d?[._]|text_encoder|text_model|clip_|t5|llama)")
KEYS_SHOWN = 5


class LoraFormat(StrEnum):
    """Who wrote the file, as far as its keys tell."""

    PEFT = "peft"
    DIFFUSION_MODEL = "diffusion_model"
    DOWN_UP = "lora_down/lora_up"
    LORA_UNET = "lora_unet"
    LYCORIS = "lycoris"


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """ΔW = scale · up · down."""

    down: Tensor  # [R, I]
    up: Tensor  # [O, R]
    scale: float
    magnitude: Tensor | None = None  # of DoRA: [O, 1] of the rows of W + ΔW, or [1, I] of its columns

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.up.shape[0], self.down.shape[1]

    def delta(self) -> Tensor:
        """ΔW [O, I], float32."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker:
    """ΔW = scale · (left ⊗ right)."""

    left: Tensor  # [O1, I1]
    right: Tensor  # [O2, I2], with O = O1·O2 and I = I1·I2
    scale: float
    magnitude: Tensor | None = None  # as in LowRank

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.left.shape[0] * self.right.shape[0], self.left.shape[1] * self.right.shape[1]

    def delta(self) -> Tensor:
        """ΔW [O, I], float32."""
        return self.scale * torch.kron(self.left.float(), self.right.float())


Adapter = LowRank | Kronecker


@dataclass(frozen=True, slots=True, eq=False)
class LoraFile:
    """What one file holds."""

    name: str
    format: LoraFormat
    adapters: Mapping[str, Adapter]  # by the key of the layer, as the file has it
    notes: tuple[str, ...]  # what was left aside


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA: a safetensors file, or a folder that PEFT or diffusers wrote.

    Raises CheckpointError when it cannot be read, has no adapter for the transformer, or one that is not complete.
    """
    file = _file(path)
    tensors, metadata = _read(file)
    settings = _settings(file, metadata)
    encoders = {key for key in tensors if TEXT_ENCODER.match(key)}
    groups, left = _groups({key: tensor for key, tensor in tensors.items() if key not in encoders})
    adapters = {key: _adapter(key, parts, settings) for key, parts in groups.items()}
    if not adapters:
        raise CheckpointError(f"{file} has no LoRA of the transformer: its keys are {some(list(tensors))}; {ACCEPTED}")
    partly = [key for key in left if any(key[: dot.start()] in adapters for dot in re.finditer(r"\.", key))]
    if partly:
        raise CheckpointError(f"{file} changes layers in a way that is not known: {some(partly)}; {ACCEPTED}")
    notes = [f"skipped tensors of text encoders: {len(encoders)}"] if encoders else []
    if left:
        notes.append(f"skipped tensors of an unknown kind: {len(left)} ({some(left)})")
    return LoraFile(file.stem if path == file else path.name, _format(tensors), adapters, tuple(notes))


def bare(key: str) -> str:
    """Return a layer's key without the prefixes that trainers put before its name."""
    while prefix := PREFIX.match(key):
        key = key[prefix.end() :]
    return key


def some(keys: list[str]) -> str:
    """Show the first keys of a list."""
    return ", ".join(keys[:KEYS_SHOWN]) + (", …" if len(keys) > KEYS_SHOWN else "")


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = [path / name for name in FILE_NAMES if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(f"{path} has {len(files)} safetensors files; accepted: a LoRA's file, or its folder")
    return files[0]


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the LoRA {file} cannot be read: {error}; {ACCEPTED}") from error


def _settings(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's configuration of the adapter: in the file's metadata, or beside it; else empty."""
    beside = file.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            values = json.loads(metadata["lora_adapter_metadata"])
        elif file.name == FILE_NAMES[0] and beside.is_file():
            values = json.loads(beside.read_text())
        else:
            return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"PEFT's configuration of the LoRA {file} cannot be read: {error}") from error
    return {key.removeprefix("transformer."): value for key, value in values.items()}


def _groups(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Sort tensors by layer and part; the keys that are no part of anything come second."""
    groups: dict[str, dict[str, Tensor]] = {}
    left = []
    for key, tensor in tensors.items():
        suffix = next((suffix for suffix in PARTS if key.endswith(f".{suffix}")), None)
        if suffix:
            groups.setdefault(key.removesuffix(f".{suffix}"), {})[PARTS[suffix]] = tensor
        else:
            left.append(key)
    return groups, left


def _format(tensors: Mapping[str, Tensor]) -> LoraFormat:
    keys = "\n".join(tensors)
    if ".lokr_" in keys or keys.startswith("lycoris_"):
        return LoraFormat.LYCORIS
    if "lora_unet_" in keys:
        return LoraFormat.LORA_UNET
    if "diffusion_model." in keys:
        return LoraFormat.DIFFUSION_MODEL
    return LoraFormat.DOWN_UP if "down.weight" in keys else LoraFormat.PEFT


def _adapter(key: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Adapter:
    matrices = {name: _matrix(key, name, tensor) for name, tensor in parts.items() if name != "alpha"}
    magnitude = matrices.pop("magnitude", None)
    if matrices.keys() not in COMPLETE:
        raise CheckpointError(f"the LoRA's layer {key} is not complete: it has only {', '.join(parts)}; {ACCEPTED}")
    if "down" in matrices:
        down, up = matrices["down"], matrices["up"]
        _chain(key, up, down)
        return LowRank(down, up, _scale(key, parts, settings, down.shape[0]), magnitude)
    left, left_rank = _factor(key, matrices, "w1")
    right, right_rank = _factor(key, matrices, "w2")
    return Kronecker(left, right, _scale(key, parts, settings, right_rank or left_rank), magnitude)


def _factor(key: str, matrices: Mapping[str, Tensor], side: str) -> tuple[Tensor, int | None]:
    """One side of a Kronecker product, small enough to be multiplied out, and the rank that it was stored with."""
    if side in matrices:
        return matrices[side], None
    factors = [matrices[f"{side}_a"].float(), matrices[f"{side}_b"].float()]
    if side == "w2" and "t2" in matrices:  # Tucker: the first factor lies the other way round
        factors = [factors[0].mT, matrices["t2"].float(), factors[1]]
    _chain(key, *factors)
    return torch.linalg.multi_dot(factors), factors[-1].shape[0]


def _scale(key: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any], rank: int | None) -> float:
    """Alpha over rank; where both sides of a Kronecker product are whole there is no rank, and LyCORIS takes 1."""
    scale = 1.0
    if "alpha" in parts and rank:
        scale = float(parts["alpha"].flatten()[0]) / rank
    elif settings.get("peft_type") == "LOKR":
        scale = _pattern(settings, "alpha", key) / _pattern(settings, "rank", key)
    elif "lora_alpha" in settings and rank:
        scale = _pattern(settings, "alpha", key) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise CheckpointError(f"the LoRA's layer {key} has the scale {scale}; accepted: a finite alpha")
    return scale


def _pattern(settings: Mapping[str, Any], name: str, key: str) -> float:
    """PEFT's rank or alpha of a layer (peft 0.21.2, utils/other.py, get_pattern_key)."""
    patterns: Mapping[str, object] = settings.get(f"{name}_pattern") or {}
    default = settings.get("r") if name == "rank" else settings.get("lora_alpha", settings.get("alpha"))
    value = next((v for pattern, v in patterns.items() if re.match(rf"(.*\.)?({pattern})$", bare(key))), default)
    if not isinstance(value, int | float) or value <= 0:
        raise CheckpointError(f"PEFT's configuration of the LoRA gives {key} the {name} {value!r}; accepted: a number")
    return float(value)


def _matrix(key: str, part: str, tensor: Tensor) -> Tensor:
    """A part as a matrix, whatever axes of length 1 a trainer gave it; a magnitude [O] as [O, 1]."""
    tensor = tensor.float() if tensor.itemsize == 1 else tensor  # float8 cannot be asked whether it is finite
    if tensor.ndim > 2:
        tensor = tensor.flatten(1)
    if tensor.ndim == 1 and part == "magnitude":
        tensor = tensor[:, None]
    problem = (
        f"the shape {list(tensor.shape)}"
        if tensor.ndim != 2 or not tensor.numel()
        else f"the type {tensor.dtype}"
        if not tensor.is_floating_point()
        else "values that are not finite"
        if not tensor.isfinite().all()
        else None
    )
    if problem:
        raise CheckpointError(f"the LoRA's layer {key} has {problem} in {part}; accepted: matrices of finite floats")
    return tensor


def _chain(key: str, *factors: Tensor) -> None:
    """Check that matrices can be multiplied."""
    if any(a.shape[1] != b.shape[0] for a, b in pairwise(factors)):
        shapes = " and ".join(str(list(factor.shape)) for factor in factors)
        raise CheckpointError(f"the LoRA's layer {key} has parts of shapes {shapes}; accepted: parts of one rank")
