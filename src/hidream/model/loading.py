"""From a user's files to a model that draws: settles device and type, loads every part, names the version."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

import hidream
from hidream.errors import ConfigurationError, InvalidInput
from hidream.model import lora
from hidream.model.linear import Changes
from hidream.model.lora import Lora
from hidream.model.text import TextEncoders, load_text_encoders
from hidream.model.text_cache import TextCache
from hidream.model.transformer import Transformer
from hidream.model.vae import Autoencoder, load_autoencoder
from hidream.model.weights import Checkpoint, embedded, load_transformer, weights_hash
from hidream.types import LoraUse, Storage, Variant

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TEXT_CACHE_BYTES = 2**29
"""For embeddings of earlier prompts, in host memory: about a dozen of the published model's, 35 MB each."""


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded checkpoint."""

    variant: Variant
    version: str
    text: TextEncoders
    transformer: Transformer
    vae: Autoencoder
    best_tokens: int
    device: torch.device
    dtype: torch.dtype
    refines: bool = True  # whether it draws well on grids larger than its best, from a picture that is nearly done
    loras: Mapping[str, Lora] = field(default_factory=dict)

    @property
    def token_px(self) -> int:
        """Pixels that one image token covers, along one side."""
        return self.vae.factor * self.transformer.config.patch_size

    def changes(self, loras: Sequence[LoraUse]) -> Changes:
        """What the LoRAs of a request change. Raises InvalidInput on a name that is not known."""
        unknown = [use.name for use in loras if use.name not in self.loras]
        if unknown:
            known = ", ".join(self.loras) or "none, because none is configured"
            raise InvalidInput(f"loras names {unknown[0]!r:.100}; accepted: {known}")
        return lora.changes([(self.loras[use.name], use.weight) for use in loras], self.device, self.dtype)


def load(
    variant: Variant,
    checkpoint: Checkpoint | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    storage: str = "auto",
    loras: Path | None = None,
    hash_cache: Path | None = None,
) -> Model:
    """Load a checkpoint, or a path to one in any format of docs/MODELS.md; without either the embedded nano.

    `storage` is a `types.Storage` for the large matrices, or "auto". `loras` is a folder whose LoRAs requests may name.
    `hash_cache` is a file that remembers the digests of large weights. Raises CheckpointError when a part is missing or
    does not fit, ConfigurationError on an unknown device, dtype or storage.
    """
    if checkpoint is None:
        checkpoint = embedded(variant)
    elif isinstance(checkpoint, Path):
        checkpoint = Checkpoint(checkpoint)
    where = resolve_device(device)
    kind, stored = resolve_dtype(dtype, where), resolve_storage(storage)
    transformer = load_transformer(checkpoint, where, kind, stored)
    text = load_text_encoders(checkpoint, where, kind, stored)
    digest = weights_hash(checkpoint.weight_files(), hash_cache)
    compute = f"{where.type}-{str(kind).removeprefix('torch.')}" + (f"-{stored}" if stored else "")
    cache = TextCache(TEXT_CACHE_BYTES, torch.device("cpu"))
    return Model(
        variant=variant,
        version=f"hidream-i1-{variant}/{digest}/exact/{compute}/{hidream.__version__}",
        text=dataclasses.replace(text, device=where, dtype=kind, cache=cache, identity=digest),
        transformer=transformer,
        vae=load_autoencoder(checkpoint, where, kind),
        best_tokens=_best_tokens(checkpoint, transformer),
        device=where,
        dtype=kind,
        refines=checkpoint.index().get("_refines", True),
        loras=_loras(loras, transformer),
    )


def resolve_device(name: str) -> torch.device:
    """Settle "auto". Raises ConfigurationError on a device that torch does not know or this machine does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigurationError(f"the device {name!r} cannot be used: {error}") from error
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Settle "auto": float32 on a CPU, where 16-bit arithmetic may be a hundred times slower, else bfloat16."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    if name not in DTYPES:
        raise ConfigurationError(f"the dtype {name!r} is not known; accepted: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def resolve_storage(name: str) -> Storage | None:
    """Settle a storage by its name; None is "auto"."""
    if name != "auto" and name not in list(Storage):
        raise ConfigurationError(f"the storage {name!r} is not known; accepted: auto, {', '.join(Storage)}")
    return None if name == "auto" else Storage(name)


def _loras(folder: Path | None, transformer: Transformer) -> dict[str, Lora]:
    """Read every LoRA of a folder, by its file's name without the ending."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise ConfigurationError(f"the folder of LoRAs {folder} does not exist")
    return {file.stem: lora.load_lora(file, transformer) for file in sorted(folder.glob("*.safetensors"))}


def _best_tokens(checkpoint: Checkpoint, transformer: Transformer) -> int:
    """Image tokens of the area the model draws best: 1024² pixels, unless the configuration says otherwise.

    `_default_sample_size` in model_index.json is a side in latent cells, as in diffusers' pipelines, which pass over
    private keys; the published checkpoints do not have it, their largest shape is their best.
    """
    side = checkpoint.index().get("_default_sample_size")
    config = transformer.config
    return int((side // config.patch_size) ** 2) if side else config.max_tokens
