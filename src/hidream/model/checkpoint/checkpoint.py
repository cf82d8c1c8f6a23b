"""From published files to the transformer in memory: where each part is, what its file states, and its digest.

A part is a folder of the diffusers layout (`transformer/`, `vae/`, `text_encoder{,_2,_3,_4}/`, `tokenizer{,_2,_3,_4}/`)
or a single file in any format that `formats/detect.py` knows. The parts may come from one folder, or be named one by
one; Llama must be named, because the official repositories do not include it. A part comes from where it was named,
else from the checkpoint's own folder. Otherwise it is missing; no other place is searched.

Modules are built on the meta device and given the file's tensors (`assign.py`), so no weight is initialised only to be
replaced. On the CPU, weights that keep their type stay in the mapped file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hidream.errors import CheckpointError
from hidream.formats.comfy_folder import parts_in
from hidream.formats.detect import Published, class_in, config_of, files_of, metadata_object, read, read_json
from hidream.formats.quantized import StoredTensor
from hidream.formats.regular_file import sha256_of
from hidream.model.checkpoint.assign import Target, assign, resolve_stored
from hidream.model.checkpoint.inferred import transformer_config
from hidream.model.memory.footprint import BLOCKS, part_of
from hidream.model.network import matmul
from hidream.model.network.config import TransformerConfig
from hidream.model.network.kernels import Weights, choose
from hidream.model.network.transformer import Transformer
from hidream.parts import EVERYTHING, LLAMA, PARTS, TOKENIZERS, TRANSFORMER
from hidream.types import Variant, WeightFormat

NANO = Path(__file__).parent.parent.parent / "nano"
"""The model inside this package."""
LLAMA_HELP = (
    "The official HiDream-I1 repositories do not include Llama-3.1-8B-Instruct: run `hidream models pull llama` "
    "(Meta's repository, which needs Meta's consent) or `hidream models pull unsloth/Meta-Llama-3.1-8B-Instruct` (the "
    "same weights), and official folders find it; or name a folder or file of it, such as ComfyUI's "
    "llama_3.1_8b_instruct_fp8_scaled.safetensors, with HIDREAM_MODELS_LLAMA, `[models] llama` or --llama."
)
TOKENIZER_HELP = (
    "Single files come without tokenizers: download `tokenizer*/` of "
    "HiDream-ai/HiDream-I1-Dev, and as tokenizer_4 the tokenizer.json and tokenizer_config.json of "
    "unsloth/Meta-Llama-3.1-8B-Instruct, into one folder, and name it with HIDREAM_MODELS_TOKENIZERS, "
    "`[models] tokenizers` or --tokenizers. A tokenizer inside a GGUF file is not read."
)
UNQUANTISED = ("t_embedder", "p_embedder", "x_embedder", "final_layer")
"""Layers at both ends, a five-hundredth of the weights, for which a loss is not worth it."""
NOT_LINEAR = ("rms_norm.weight", "rms_norm_t.weight", "gate.weight")
"""Ends of the names of those weights that do not belong to a linear layer."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the parts of one model are: each is a folder or a single file."""

    folder: Path | None = None  # of all parts in the diffusers layout; or a single file, which then is the transformer
    llama: Path | None = None  # a folder with encoder and tokenizer, or a single file
    transformer: Path | None = None
    vae: Path | None = None
    clip_l: Path | None = None
    clip_g: Path | None = None
    t5: Path | None = None
    tokenizers: Path | None = None  # a folder with some of `tokenizer{,_2,_3,_4}/`
    shared: Path | None = None  # where the embedded model's variants find the parts that they have in common

    def part(self, name: str) -> Path:
        """Folder or file of one part, such as "vae": from where it was named, else from the checkpoint's own folder.

        Raises CheckpointError when it is in neither.
        """
        found = self._find(name)
        if found is None:
            raise CheckpointError(self._missing(name))
        return found

    def _find(self, name: str) -> Path | None:
        return self._tokenizer(name) if name in TOKENIZERS else self._weights(name)

    def _weights(self, name: str) -> Path | None:
        named = getattr(self, PARTS[name].setting)
        if named is not None:
            found = _within(named, name)
            if not _is_part(found):
                lacks = f"{found}, named for {name!r}, has no folder {name!r} and no weights of its own"
                raise CheckpointError(f"{lacks}. {_help(name)}")
            return found
        own = self._own(name)
        if own is None and name == "transformer" and self.folder is not None and _is_part(self.folder):
            return self.folder
        return own

    def _tokenizer(self, name: str) -> Path | None:
        """A folder of tokenizers provides those that it has; Llama's may also be beside its weights."""
        if self.tokenizers is not None:
            if not any((self.tokenizers / each).is_dir() for each in TOKENIZERS):
                lacks = f"{self.tokenizers}, named for the tokenizers, has none of {', '.join(TOKENIZERS)}"
                raise CheckpointError(f"{lacks}. {TOKENIZER_HELP}")
            if (self.tokenizers / name).is_dir():
                return self.tokenizers / name
        if name == LLAMA.tokenizer and self.llama is not None:
            beside = _within(self.llama, name)
            if any(beside.glob("tokenizer*.json")):
                return beside
        return self._own(name)

    def _own(self, name: str) -> Path | None:
        bases = [base for base in (self.folder, self.shared) if base is not None]
        return next((base / name for base in bases if (base / name).is_dir()), None)

    def has(self, name: str) -> bool:
        """Whether a part is anywhere. Raises CheckpointError when it is named and is not where that says."""
        return self._find(name) is not None

    def of_variant(self, variant: Variant) -> Checkpoint:
        """The same with the parts of a ComfyUI models folder named one by one; any other layout stays as it is."""
        named = {part: self.part(part) for part, row in PARTS.items() if getattr(self, row.setting) is not None}
        found = parts_in(self.folder, variant, named) if self.folder else {}
        fields = {PARTS[part].setting if part in PARTS else part: path for part, path in found.items()}
        return replace(self, **{name: path for name, path in fields.items() if getattr(self, name) is None})

    def read(self, name: str, *, values: bool = True) -> Published:
        """Open one part's tensors. Raises CheckpointError when it is nowhere, torn, or something else.

        Without `values`, only names, shapes and types need to be right, as in `detect.read`.
        """
        return read(self.part(name), (PARTS[name].kind,), values=values)

    def config(self, name: str) -> dict[str, Any] | None:
        """What one part says of its own numbers; None where it says nothing, as single files mostly do."""
        path = self.part(name)
        stated = config_of(path)
        if stated is None or path.is_dir():
            return stated
        # a file beside a single file may belong to another part
        return stated if class_in(stated) in PARTS[name].classes else None

    def index(self) -> dict[str, Any]:
        """`model_index.json` beside the transformer or in the folder, or what the transformer's metadata has of it."""
        transformer = self.part("transformer")
        for folder in (transformer.parent, self.folder):
            path = None if folder is None else folder / "model_index.json"
            if path is not None and path.is_file():
                return read_json(path)
        return metadata_object("model_index", transformer) or {}

    def weight_files(self) -> list[Path]:
        """Every file of weights that decides the image."""
        return [file for name in PARTS for file in files_of(self.part(name))]

    def _missing(self, name: str) -> str:
        if self.folder is None:
            what = f"the part {name!r} is not named"
        elif not self.folder.exists():
            what = f"{self.folder} does not exist"
        elif self.folder.is_file():
            what = f"{self.folder} is a single file, which has no {name!r}"
        else:
            what = f"{self.folder} has no folder {name!r}; accepted: the diffusers layout"
        from_llama = name == LLAMA.tokenizer and self.llama is None
        return f"{what}. {LLAMA_HELP if from_llama else _help(name)}"


def embedded(variant: Variant, nano: Path = NANO) -> Checkpoint:
    """Return a variant of nano, all of which share Dev's parts but for the transformer."""
    return Checkpoint(nano / variant, shared=nano / Variant.DEV)


def load_transformer(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    storage: WeightFormat | None = None,
    placed: Callable[[str], torch.device] | None = None,
    *,
    compiled: bool = False,
    copies_bytes: float = 0,
) -> Transformer:
    """Build the transformer and give it the checkpoint's weights.

    Without `storage` they are brought to `dtype`, or kept as they are where the file has them in fewer than 16 bits.
    `placed` says by a tensor's name where it lives if not on `device`. `copies_bytes` is the largest transformer whose
    weights may be copied for speed. For `compiled`, call `compile_blocks` on the result.
    """
    published = checkpoint.read("transformer")
    target = Target(device, dtype, resolve_stored(storage, published.tensors), placed, unquantised=UNQUANTISED)
    kernels = choose(
        device.type,
        dtype,
        _weights(published.tensors, target, copies_bytes),
        onednn=matmul.onednn_available(),
        compiled=compiled,
    )
    with torch.device("meta"):
        transformer = Transformer(config_of_transformer(checkpoint, published), kernels)
    assign(transformer, published.tensors, target, published.path)
    transformer.prepare_weights()
    return transformer.eval().requires_grad_(False)


def config_of_transformer(checkpoint: Checkpoint, published: Published) -> TransformerConfig:
    """Read the transformer's configuration, or tell it from the shapes in its file."""
    stated = checkpoint.config("transformer")
    if stated is None:
        return transformer_config({name: tensor.shape for name, tensor in published.tensors.items()})
    config = TransformerConfig.from_json(stated)
    config.check_size(len(published.tensors))
    return config


@dataclass(frozen=True, slots=True)
class Source:
    """Where a part was read from, and twelve hexadecimal digits that name its content."""

    path: Path
    digest: str


def sources(checkpoint: Checkpoint, cache: Path | None) -> dict[str, Source]:
    """Name path and content of every part, the tokenizers after the parts that have weights; for `cache` see `digests`.

    Raises CheckpointError when a part is missing.
    """
    found = {}
    for name in EVERYTHING:
        path = checkpoint.part(name)
        files = files_of(path) if name in PARTS else sorted(file for file in path.iterdir() if file.is_file())
        found[name] = Source(path, _name(digests(files, cache)))
    return found


def weights_hash(files: Sequence[Path], cache: Path | None) -> str:
    """Twelve hexadecimal digits that name the content of `files`; for `cache` see `digests`."""
    return _name(digests(files, cache))


def digests(files: Sequence[Path], cache: Path | None) -> list[str]:
    """SHA-256 of each file, in hexadecimal digits; a file that is named twice counts once.

    Tens of gigabytes take minutes to read: digests are kept in the JSON file `cache`, by path, size and time of change.
    """
    try:
        known: dict[str, str] = json.loads(cache.read_text()) if cache else {}
    except (OSError, ValueError):
        known = {}  # absent or torn by a crash: it is only a cache
    made: dict[str, str] = {}
    for file in files:
        stat = file.stat()
        entry = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        made[entry] = known.get(entry) or sha256_of(file)
    if cache and not made.keys() <= known.keys():
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        cache.touch(mode=0o600)
        cache.write_text(json.dumps(known | made, indent=1))
    return list(made.values())


def _name(digests: Sequence[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


def _weights(tensors: Mapping[str, StoredTensor], target: Target, copies_bytes: float) -> Weights:
    """Say how a transformer's weights will be stored, which decides how it computes."""
    matrices = {
        key: value for key, value in tensors.items() if key.endswith(".weight") and not key.endswith(NOT_LINEAR)
    }
    plain = target.storage is WeightFormat.COMPUTE or (
        target.storage is WeightFormat.STORED and all(_has_type(value, target.dtype) for value in matrices.values())
    )
    blocks = [key for key in matrices if part_of(key) == BLOCKS]
    in_blocks = target.storage is WeightFormat.COMPUTE or (
        target.storage is WeightFormat.STORED and all(_has_type(matrices[key], target.dtype) for key in blocks)
    )
    on_device = all(target.place(key).type == target.device.type for key in blocks)
    total_bytes = sum(value.shape.numel() for value in tensors.values()) * target.dtype.itemsize
    return Weights(
        dense=in_blocks and on_device,
        mapped=any(_has_type(matrices[key], target.dtype) for key in blocks),
        small=plain and total_bytes < copies_bytes,
    )


def _has_type(value: StoredTensor, dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and value.dtype == dtype


def _help(name: str) -> str:
    """Say what to do about a part that is missing."""
    if name in TOKENIZERS:
        return TOKENIZER_HELP
    part = PARTS[name]
    if part is TRANSFORMER:
        return "It may also be a single file: hidream_i1_*.safetensors of Comfy-Org/HiDream-I1_ComfyUI, or GGUF."
    if part is LLAMA:
        return LLAMA_HELP
    named = f"HIDREAM_MODELS_{part.setting.upper()}, `[models] {part.setting}` or {part.flag}"
    return f"Name {part.comfy_published} or a folder `{name}` with {named}."


def _is_part(path: Path) -> bool:
    """Whether a path is one part by itself: a file, or a folder with weights right in it."""
    return path.is_file() or any(each.suffix in (".safetensors", ".gguf") for each in path.glob("*.*"))


def _within(path: Path, name: str) -> Path:
    """A path that was given for one part: the part itself, or a folder that has it under its own name."""
    if not path.exists():
        help_text = f". {LLAMA_HELP}" if name in (LLAMA.name, LLAMA.tokenizer) else "; accepted: a folder or a file"
        raise CheckpointError(f"{path}, named for {name!r}, does not exist{help_text}")
    return path / name if (path / name).is_dir() else path
