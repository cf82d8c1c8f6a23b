"""Reads LoRA files: safetensors of any published layout, recognised by their keys, to adapters.

| keys of one layer                                         | written by                                     |
|-----------------------------------------------------------|------------------------------------------------|
| `transformer.X.lora_A.weight`, `.lora_B.weight`           | diffusers, PEFT (`base_model.model.X`)         |
| `diffusion_model.X.lora_A.weight`, `.lora_B.weight`       | ai-toolkit, diffusion-pipe                     |
| `transformer.X.lora_down.weight`, `.lora_up.weight`       | OneTrainer                                     |
| `lora_unet_X.lora_down.weight`, X with `_` for `.`        | kohya's trainers                               |
| `lycoris_X.lokr_w1`, `.lokr_w2`, or their `_a` and `_b`   | LyCORIS, SimpleTuner                           |
| `X.hada_w1_a`, `_w1_b`, `_w2_a`, `_w2_b`, in any of them  | LyCORIS, PEFT: LoHa                            |
| `.alpha` beside any of them                               | strength: alpha over rank; without it 1        |
| `.lora_magnitude_vector` or `.dora_scale` beside them     | DoRA                                           |

PEFT writes alpha into `adapter_config.json`, diffusers into the file's metadata. This module knows files and keys.
`adapters.py` knows the parts of a layer, and `model/network/lora.py` which layers a model has: it decides from the
shapes in the header which layers are read. They are read into memory, not mapped, because the file may be replaced
while a request uses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hidream.errors import CheckpointError
from hidream.formats import detect
from hidream.formats.adapters import HADAMARD, Adapter, AdapterSpec, adapter, adapter_spec
from hidream.formats.json_object import JSON_MAX_BYTES, object_of, why
from hidream.formats.peft_settings import PeftSettings
from hidream.formats.regular_file import open_regular, read_regular
from hidream.formats.safetensors_file import Header, header_in, header_of, read_tensor

ACCEPTED = (
    "accepted: safetensors with lora_A/lora_B, lora_down/lora_up, lokr_w1/lokr_w2 or hada_w1/hada_w2 tensors, whose "
    "keys start with transformer., diffusion_model., lora_unet_, lycoris_ or the layer's name"
)
FILE_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT and diffusers call the file in a folder that they write."""

LYCORIS = {
    **{f"lokr_{name}": name for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{name: name for name in (*HADAMARD, "hada_t1", "hada_t2")},
}
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
    **LYCORIS,
    **{f"{name}.default": part for name, part in LYCORIS.items()},
}
"""What a tensor is, by the end of its key."""
AUXILIARY_PARTS = {"alpha", "magnitude"}
"""Parts that make no adapter by themselves."""

UNSUPPORTED = {
    **dict.fromkeys(("oft_blocks", "oft_R", "oft_R.weight", "oft_r"), "OFT"),
    **dict.fromkeys(("boft_R", "boft_s"), "BOFT"),
    **dict.fromkeys((f"{name}.weight" for name in ("a1", "a2", "b1", "b2", "bm")), "GLoRA"),
    **dict.fromkeys(("on_input", "ia3_l"), "IA3"),
    **dict.fromkeys(("diff", "diff_b"), "differences of whole weights"),
    **dict.fromkeys(("w_norm", "b_norm"), "changes of norms"),
    **dict.fromkeys(("vera_lambda_b", "vera_lambda_d"), "VeRA"),
    "lambda_layer": "T-LoRA",
    "lora_mid.weight": "LoRA of convolutions",
    "lora_B.bias": "LoRA of biases",
}
"""Kinds of adapters that are not read, by the end of a key."""

PREFIX = re.compile(
    r"base_model\.model\.|(model\.)?diffusion_model\.|transformer\.|lycoris[._]|lora_(unet|transformer)_"
)
TEXT_ENCODER = re.compile(r"(base_model\.model\.)?(lora_|lycoris_)?(te\d?[._]|text_encoder|text_model|clip_|t5|llama)")
KEYS_SHOWN = 5
LORA_MAX_BYTES = 2**33
"""Of what is read of a file, all at once; rank 256 for each layer of the published model has half of it in bfloat16."""
KEY_MAX_CHARS = 300
"""Longest key that is taken for one of a layer."""


class LoraFormat(StrEnum):
    """Who wrote the file, as far as its keys tell."""

    PEFT = "peft"
    DIFFUSION_MODEL = "diffusion_model"
    DOWN_UP = "lora_down/lora_up"
    LORA_UNET = "lora_unet"
    LYCORIS = "lycoris"


@dataclass(frozen=True, slots=True, eq=False)
class LoraFile:
    """What one file holds."""

    name: str
    format: LoraFormat
    adapters: Mapping[str, Adapter]  # by the key of the layer, as the file has it
    notes: tuple[str, ...]  # what is left out
    others: tuple[str, ...] = ()  # keys of the layers that were not wanted


Wants = Callable[[str, AdapterSpec], bool]
"""Whether the layer of a key is wanted; raises CheckpointError where the file cannot be used because of it."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """A file's keys, sorted by what they are."""

    layers: dict[str, dict[str, str]]  # the keys of a layer's parts, by layer and part
    encoders: list[str]  # of text encoders
    left: list[str]  # of nothing that is read


def read_lora(path: Path, wants: Wants = lambda key, spec: True) -> LoraFile:
    """Read a LoRA: a safetensors file, or a folder that PEFT or diffusers wrote, of whose layers those that are wanted.

    Raises CheckpointError when it cannot be read, has no adapter for the transformer, or one that is not complete.
    """
    file = _file(path)
    shown = file.name if path == file else f"{path.name}/{file.name}"
    try:
        with open_regular(file) as stream:
            header = header_in(stream)
            keys = _keys(header, shown)
            wanted = {key: wants(key, spec) for key, spec in _adapter_specs(header, keys).items()}
            _check_bytes(header, keys, wanted, shown)
            tensors = {
                key: {part: read_tensor(stream, header.entries[name]) for part, name in parts.items()}
                for key, parts in keys.layers.items()
                if wanted[key]
            }
            if header_in(stream) != header:
                raise ValueError("a file that was changed while it was read")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{shown} cannot be read: {why(error)}; {ACCEPTED}") from error
    except (MemoryError, RuntimeError) as error:
        raise CheckpointError(f"{shown} is too large for the available memory; accepted: a smaller file") from error
    settings = _settings(file, shown, header.metadata)
    adapters = {key: adapter(key, layer_name(key), tensors.pop(key), settings) for key in list(tensors)}
    notes = [f"skipped tensors of text encoders: {len(keys.encoders)}"] if keys.encoders else []
    if keys.left:
        notes.append(f"skipped tensors of an unknown kind: {len(keys.left)} ({_kinds(keys.left)})")
    others = tuple(key for key in keys.layers if not wanted[key])
    name = file.stem if path == file else path.name
    return LoraFile(name, _format(list(header.entries)), adapters, tuple(notes), others)


def layer_name(key: str) -> str:
    """Return a layer's key without the prefixes that trainers put before its name."""
    while prefix := PREFIX.match(key):
        key = key[prefix.end() :]
    return key


def first_keys(keys: list[str]) -> str:
    """Show the first keys of a list."""
    return ", ".join(keys[:KEYS_SHOWN]) + (", …" if len(keys) > KEYS_SHOWN else "")


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = [path / name for name in FILE_NAMES if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(f"{path.name} has {len(files)} safetensors files; accepted: a LoRA's file, or its folder")
    return files[0]


def values_in(path: Path, wants: Wants) -> int:
    """Count the values that a LoRA's wanted layers will hold, from its header alone; 0 for a file that is none."""
    try:
        header = header_of(_file(path))
        specs = _adapter_specs(header, _keys(header, path.name))
        return sum(spec.values for key, spec in specs.items() if wants(key, spec))
    except (OSError, ValueError, CheckpointError):
        return 0


def _keys(header: Header, shown: str) -> _Keys:
    """A file's keys, among them those of layers. Raises CheckpointError when there are none, or some are not known.

    Whole models, which are large, are recognised here, before anything else is read.
    """
    odd = [name for name in header.entries if len(name) > KEY_MAX_CHARS]
    if odd:
        raise CheckpointError(f"{shown} has the key {odd[0]!r:.100}; {ACCEPTED}")
    keys = _sorted(header.entries)
    if not keys.layers:
        raise CheckpointError(
            f"{shown} has no LoRA of the transformer: {_contents(list(header.entries), keys)}; {ACCEPTED}"
        )
    partly = [key for key in keys.left if any(layer in keys.layers for layer in _layers_of(key))]
    if partly:
        raise CheckpointError(f"{shown} changes layers in an unknown way: {_kinds(partly)}; {ACCEPTED}")
    return keys


def _check_bytes(header: Header, keys: _Keys, wanted: Mapping[str, bool], shown: str) -> None:
    names = [name for key, parts in keys.layers.items() if wanted[key] for name in parts.values()]
    size = sum(header.entries[name].end - header.entries[name].start for name in names)
    if size > LORA_MAX_BYTES:
        raise CheckpointError(f"{shown} has {size:,} bytes for this model; accepted: at most {LORA_MAX_BYTES:,}")


def _adapter_specs(header: Header, keys: _Keys) -> dict[str, AdapterSpec]:
    """What each layer's adapter will be."""
    return {
        key: adapter_spec(key, {part: header.entries[name].shape for part, name in parts.items()})
        for key, parts in keys.layers.items()
    }


def _settings(file: Path, shown: str, metadata: Mapping[str, str]) -> PeftSettings:
    """PEFT's configuration of the adapter: in the file's metadata, or beside it; else empty."""
    beside = file.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            values = object_of(metadata["lora_adapter_metadata"])
        elif file.name == FILE_NAMES[0] and beside.exists():
            values = object_of(read_regular(beside, JSON_MAX_BYTES))
        else:
            return PeftSettings()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"PEFT's configuration of the LoRA {shown} cannot be read: {why(error)}") from error
    return PeftSettings({key.removeprefix("transformer."): value for key, value in values.items()})


def _sorted(names: Iterable[str]) -> _Keys:
    keys = _Keys({}, [], [])
    for name in names:
        suffix = next((suffix for suffix in PARTS if name.endswith(f".{suffix}")), None)
        layer = name.removesuffix(f".{suffix}")
        if TEXT_ENCODER.match(name):
            keys.encoders.append(name)
        elif suffix and PARTS[suffix] not in keys.layers.get(layer, {}):
            keys.layers.setdefault(layer, {})[PARTS[suffix]] = name
        else:
            keys.left.append(name)
    for layer in dict.fromkeys(layer for name in keys.left for layer in _layers_of(name)):
        if layer in keys.layers and keys.layers[layer].keys() <= AUXILIARY_PARTS:  # alpha of a kind that is not read
            keys.left.extend(keys.layers.pop(layer).values())
    return keys


def _layers_of(key: str) -> list[str]:
    """Whatever may be the layer in a key of an unknown kind."""
    return [key[: dot.start()] for dot in re.finditer(r"\.", key)]


def _unsupported(keys: list[str]) -> list[str]:
    return sorted({kind for key in keys for end, kind in UNSUPPORTED.items() if key.endswith(f".{end}")})


def _kinds(keys: list[str]) -> str:
    """Show some keys that are not read, and say what they are, as far as that is known."""
    kinds = " and ".join(_unsupported(keys))
    return f"{first_keys(keys)} ({kinds}, which is not supported)" if kinds else first_keys(keys)


def _contents(names: list[str], keys: _Keys) -> str:
    """Say what a file without a LoRA holds."""
    if not keys.left:
        return f"it is for text encoders only: {first_keys(keys.encoders)}" if names else "it has no tensors"
    kind = None if _unsupported(keys.left) else detect.kind_of(names)
    return f"it is {kind}" if kind else f"its keys are {_kinds(keys.left)}"


def _format(names: list[str]) -> LoraFormat:
    keys = "\n".join(names)
    if ".lokr_" in keys or ".hada_" in keys or keys.startswith("lycoris_"):
        return LoraFormat.LYCORIS
    if "lora_unet_" in keys:
        return LoraFormat.LORA_UNET
    if "diffusion_model." in keys:
        return LoraFormat.DIFFUSION_MODEL
    return LoraFormat.DOWN_UP if "down.weight" in keys else LoraFormat.PEFT
