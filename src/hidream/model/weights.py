"""From a checkpoint folder to modules in memory: finds the parts, reads safetensors, checks every key.

The folder has the diffusers layout: `transformer/`, `vae/`, `text_encoder{,_2,_3,_4}/`, `tokenizer{,_2,_3,_4}/`. A part
that is missing may come from elsewhere: Llama from a folder of its own, since the official repository does not
include it, and all but the transformer from a folder `dev` beside it, as the embedded model's Full takes it.

Modules are built on the meta device and given the file's tensors, so that nothing is initialised only to be replaced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hidream.errors import CheckpointError
from hidream.model.config import TransformerConfig
from hidream.model.transformer import Transformer
from hidream.types import Variant

LLAMA_HELP = (
    "The official HiDream-I1 repositories do not include Llama-3.1-8B-Instruct: download it and name its folder "
    "with HIDREAM_MODELS_LLAMA, `[models] llama` or --llama."
)
KEYS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the parts of one model lie."""

    folder: Path
    llama: Path | None = None

    def part(self, name: str) -> Path:
        """Folder of one part, such as "vae". Raises CheckpointError when it is nowhere."""
        if name in ("text_encoder_4", "tokenizer_4") and self.llama is not None:
            return self._existing(self.llama, name)
        for base in (self.folder, self.folder.parent / Variant.DEV):
            if (base / name).is_dir():
                return base / name
        help_text = f" {LLAMA_HELP}" if name.endswith("_4") else ""
        raise CheckpointError(f"{self.folder} has no folder {name!r}; accepted: the diffusers layout.{help_text}")

    def config(self, name: str) -> dict[str, Any]:
        """`config.json` of one part."""
        return _read_json(self.part(name) / "config.json")

    def index(self) -> dict[str, Any]:
        """`model_index.json`, which names the classes of all parts."""
        return _read_json(self.folder / "model_index.json")

    def weight_files(self) -> list[Path]:
        """Every file of weights that decides the picture."""
        parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
        return [file for name in parts for file in safetensors_files(self.part(name))]

    def _existing(self, base: Path, name: str) -> Path:
        # a folder of Llama holds encoder and tokenizer together, or is itself in the diffusers layout
        path = base / name if (base / name).is_dir() else base
        if not path.is_dir():
            raise CheckpointError(f"the Llama folder {base} does not exist. {LLAMA_HELP}")
        return path


def embedded(variant: Variant) -> Checkpoint:
    """Return nano, the model inside this package. Raises CheckpointError for a variant that nano does not have."""
    nano = Path(__file__).parent.parent / "nano"
    if not (nano / variant).is_dir():
        has = ", ".join(v for v in Variant if (nano / v).is_dir())
        raise CheckpointError(f"the embedded model has no variant {variant}; accepted: {has}, or a checkpoint's folder")
    return Checkpoint(nano / variant)


def safetensors_files(folder: Path) -> list[Path]:
    """Return the files of one part: those that the index names, or the only one there is."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        names = sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(f"{folder} lacks {', '.join(missing) or 'its *.safetensors file'}")
    return files


def load_transformer(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Build the transformer and give it the checkpoint's weights, packed for speed."""
    config = TransformerConfig.from_json(checkpoint.config("transformer"))
    with torch.device("meta"):
        transformer = Transformer(config)
    assign(
        transformer,
        read_tensors(checkpoint.part("transformer"), device, dtype),
        checkpoint.part("transformer"),
    )
    transformer.pack()
    return transformer.eval().requires_grad_(False)


def read_tensors(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of one part, on `device` in `dtype`."""
    tensors: dict[str, Tensor] = {}
    for file in safetensors_files(folder):
        try:
            part = load_file(file, device=str(device))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
        tensors.update({key: tensor.to(dtype) for key, tensor in part.items()})
    return tensors


def assign(module: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Give `module`, built on meta, its tensors. Raises CheckpointError on a key or shape that does not fit."""
    wanted = {key: value.shape for key, value in module.state_dict().items()}
    problems = [
        ("missing", sorted(wanted.keys() - tensors.keys())),
        ("unexpected", sorted(tensors.keys() - wanted.keys())),
        (
            "of another shape",
            sorted(k for k in wanted.keys() & tensors.keys() if wanted[k] != tensors[k].shape),
        ),
    ]
    texts = [
        f"{len(keys)} {what} ({', '.join(keys[:KEYS_SHOWN])}{', …' * (len(keys) > KEYS_SHOWN)})"
        for what, keys in problems
        if keys
    ]
    if texts:
        raise CheckpointError(f"the weights in {where} do not fit their configuration: keys {'; '.join(texts)}")
    module.load_state_dict(tensors, assign=True)


def weights_hash(files: list[Path], cache: Path | None) -> str:
    """Twelve hexadecimal digits that name the content of `files` (SHA-256).

    Tens of gigabytes take minutes to read: digests are kept in the JSON file `cache`, by path, size and time of change.
    """
    try:
        known: dict[str, str] = json.loads(cache.read_text()) if cache else {}
    except (OSError, ValueError):
        known = {}  # absent or torn by a crash: it is only a cache
    digests: dict[str, str] = {}
    for file in files:
        stat = file.stat()
        entry = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        digests[entry] = known.get(entry) or _sha256(file)
    if cache and not digests.keys() <= known.keys():
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(known | digests, indent=1))
    return hashlib.sha256("".join(digests.values()).encode()).hexdigest()[:12]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; accepted: the diffusers layout") from error
    return values


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
