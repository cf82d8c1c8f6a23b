"""From a user's files to a model: chooses device and type, plans the memory, and loads every part to its place."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

import hidream
from hidream.errors import CheckpointError, ConfigurationError
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded, load_transformer, weights_hash
from hidream.model.checkpoint.lora_folder import LoraFolder
from hidream.model.latents.autoencoder import load_autoencoder
from hidream.model.memory import phases
from hidream.model.memory.candidates import Placement
from hidream.model.memory.footprint import BLOCKS, ENCODERS, VAE, part_of
from hidream.model.memory.hardware import hardware_of, host_bytes
from hidream.model.memory.plan import Plan
from hidream.model.memory.plan_input import AUTOENCODER_DTYPES, PlanRequest, plan_checkpoint
from hidream.model.model import Model, Version
from hidream.model.network import bfloat16, lora
from hidream.model.network.config import NUMBER_MAX
from hidream.model.network.transformer import Transformer
from hidream.model.resolve import HOST, resolve_device, resolve_dtype, resolve_weight_format
from hidream.model.text.cache import TextCache
from hidream.model.text.text_encoders import TextEncoders, load_text_encoders
from hidream.types import Size, Variant, WeightFormat

logger = logging.getLogger(__name__)

PLANNED_SIZE = Size(1024, 1024)
"""What the memory is planned for. Larger sizes take more while they run: `hidream info --plan --size` says so."""
COPIES_SHARE = 1 / 32
"""The largest share of the machine's memory of a transformer on a CPU whose weights are copied for speed."""
TEXT_CACHE_BYTES = 2**29
"""For embeddings of earlier prompts, in host memory: about a dozen of the published model's, 35 MB each."""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A checkpoint whose headers were read: what it will take, and how it will be loaded, as often as it is wanted."""

    plan: Plan
    checkpoint: Checkpoint
    request: PlanRequest
    device: torch.device
    compiled: bool

    def load(self, hash_cache: Path | None = None) -> Model:
        """Load every part; for `hash_cache` see `load`. Raises CheckpointError where a file does not fit."""
        digest = weights_hash(self.checkpoint.weight_files(), hash_cache)
        return load_planned(self.plan, self.checkpoint, self.request, self.device, digest, compiled=self.compiled)


def load(
    variant: Variant,
    checkpoint: Checkpoint | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    storage: str = "auto",
    memory_gb: float = 0.0,
    loras: Path | None = None,
    hash_cache: Path | None = None,
    compiled: bool | None = None,
) -> Model:
    """Load a checkpoint, or a path to one in any format of docs/MODELS.md; without either the embedded nano.

    Where each part lives, and in which weight format, follows from the available memory (`plan.py`): `memory_gb` limits
    the device's; `storage` names a `types.WeightFormat` for the large matrices, instead of "auto". `loras` is a folder
    whose LoRAs requests may name (`lora_folder.py`). `hash_cache` is a file that keeps the digests of large weights.
    `compiled` has torch.compile make the transformer's blocks; None means on a CUDA device, unless the blocks are
    streamed.

    Raises CheckpointError when a part is missing or does not fit; ConfigurationError on an unknown device, dtype or
    storage, and when there is not enough memory.
    """
    planned = plan_model(
        variant,
        checkpoint,
        device=device,
        dtype=dtype,
        storage=storage,
        memory_gb=memory_gb,
        loras=loras,
        compiled=compiled,
    )
    return planned.load(hash_cache)


def plan_model(
    variant: Variant,
    checkpoint: Checkpoint | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    storage: str = "auto",
    memory_gb: float = 0.0,
    loras: Path | None = None,
    compiled: bool | None = None,
) -> PlannedModel:
    """Do all of `load` that reads no weights: find the parts, read headers, plan the memory. Raises as it does."""
    if checkpoint is None:
        checkpoint = embedded(variant)
    elif isinstance(checkpoint, Path):
        checkpoint = Checkpoint(checkpoint)
    checkpoint = checkpoint.of_variant(variant)
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    request = PlanRequest(variant, PLANNED_SIZE, resolve_weight_format(storage), kind, loras)
    plan = plan_checkpoint(checkpoint, request, hardware_of(where, memory_gb))
    return PlannedModel(plan, checkpoint, request, where, _is_compiled(compiled, plan, where))


def load_planned(
    plan: Plan, checkpoint: Checkpoint, request: PlanRequest, device: torch.device, digest: str, *, compiled: bool
) -> Model:
    """Load every part of a checkpoint to where the plan has it; `digest` names its weights."""
    loader = _Loader(plan, checkpoint, device, request.dtype)
    transformer = loader.transformer(compiled)
    vae = load_autoencoder(checkpoint, loader.place(VAE), AUTOENCODER_DTYPES.get(request.dtype, request.dtype))
    vae = dataclasses.replace(vae, tile_px=plan.tile_px)
    storage = plan.part(BLOCKS).storage
    compute = f"{device.type}-{str(request.dtype).removeprefix('torch.')}"
    stored = f"-{storage}" * (storage is not WeightFormat.COMPUTE)
    return Model(
        variant=request.variant,
        exact_version=Version(request.variant, digest, f"{compute}{stored}", hidream.__version__),
        text=loader.text(digest),
        transformer=transformer,
        vae=vae,
        best_tokens=_best_tokens(checkpoint, transformer),
        device=device,
        dtype=request.dtype,
        refines=checkpoint.index().get("_refines", True),
        loras=LoraFolder(request.loras, lora.layers(transformer)),
        phases=phases.offloaded(plan, transformer, vae, device) if device != HOST else phases.Phases(),
        bfloat16_copy=_bfloat16_copy(transformer),
    )


def _is_compiled(compiled: bool | None, plan: Plan, device: torch.device) -> bool:
    """Settle whether the blocks are compiled. Raises ConfigurationError where they cannot be."""
    stay = plan.part(BLOCKS).placement is Placement.DEVICE or device == HOST
    if compiled and not stay:
        raise ConfigurationError("compiled is on, but the blocks do not stay on the device; accepted: off, or auto")
    return device.type == "cuda" and stay if compiled is None else compiled


@dataclass(frozen=True, slots=True)
class _Loader:
    """Loads single parts of a checkpoint as a plan has them."""

    plan: Plan
    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype

    def place(self, name: str) -> torch.device:
        """Return the device on which a part lives, by the plan's name of it."""
        return self.device if self.plan.part(name).placement is Placement.DEVICE else HOST

    def transformer(self, compiled: bool) -> Transformer:
        """Load the transformer. On a CPU, a small one may keep copies of its weights, for speed."""
        transformer = load_transformer(
            self.checkpoint,
            self.device,
            self.dtype,
            self.plan.part(BLOCKS).storage,
            lambda key: self.place(part_of(key)),
            compiled=compiled,
            copies_bytes=COPIES_SHARE * host_bytes() if self.device == HOST else 0,
        )
        if compiled:
            transformer.compile_blocks()
        return transformer

    def text(self, digest: str) -> TextEncoders:
        """Load the encoders. Those that the host computes keep their file's format rather than take up float32."""
        placement = self.plan.part(ENCODERS[0]).placement
        storages = [self.plan.part(name).storage for name in ENCODERS]
        dtype = self.dtype
        if placement is Placement.HOST:
            dtype = torch.float32
            storages = [WeightFormat.STORED if each is WeightFormat.COMPUTE else each for each in storages]
        return dataclasses.replace(
            load_text_encoders(self.checkpoint, self.place(ENCODERS[0]), dtype, storages),
            device=self.device,
            dtype=self.dtype,
            sequential_offload=placement is Placement.SEQUENTIAL and self.device != HOST,
            cache=TextCache(TEXT_CACHE_BYTES, HOST),
            identity=digest,
        )


def _bfloat16_copy(transformer: Transformer) -> Transformer | None:
    """Copy a transformer whose weights may be copied, if this CPU multiplies bfloat16 faster."""
    if not transformer.kernels.prepacked or not bfloat16.is_faster():
        return None
    logger.info("bfloat16_copy this CPU multiplies bfloat16 faster: for the modes balanced and turbo")
    return bfloat16.copy_of(transformer)


def _best_tokens(checkpoint: Checkpoint, transformer: Transformer) -> int:
    """Image tokens of the model's best area: 1024² pixels, unless the configuration says otherwise.

    `_default_sample_size` in model_index.json is a side in latent cells, as in diffusers' pipelines, which pass over
    private keys; the published checkpoints do not have it, their largest shape is their best.
    """
    side = checkpoint.index().get("_default_sample_size")
    config = transformer.config
    if side is not None and not (type(side) is int and 0 < side <= NUMBER_MAX):
        raise CheckpointError(
            f"model_index.json has _default_sample_size = {side!r:.100}; "
            f"accepted: a whole number from 1 to {NUMBER_MAX}"
        )
    return int((side // config.patch_size) ** 2) if side else config.max_tokens
