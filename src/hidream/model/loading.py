"""From a user's files to a model that draws: settles device and type, loads every part, names the version."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from pathlib import Path

import torch

import hidream
from hidream.errors import CheckpointError, ConfigurationError
from hidream.model.checkpoint.checkpoint import Checkpoint, embedded, load_transformer, weights_hash
from hidream.model.checkpoint.lora_folder import LoraFolder
from hidream.model.latents.autoencoder import Autoencoder, load_autoencoder
from hidream.model.memory import plan_input, plan_report
from hidream.model.memory.candidates import Hardware, Placement
from hidream.model.memory.footprint import BLOCKS, ENCODERS, MODULATIONS, VAE, part_of
from hidream.model.memory.phases import (
    Phases,
    autoencoder_in_turn,
    blocks_in_turn,
    blocks_streamed,
    conditioning_streamed,
)
from hidream.model.memory.plan import CONTEXT_BYTES, Plan, plan
from hidream.model.model import Model
from hidream.model.network import bfloat16, lora, matmul
from hidream.model.network.config import NUMBER_MAX
from hidream.model.network.linear import Linear
from hidream.model.network.transformer import Transformer
from hidream.model.text.cache import TextCache
from hidream.model.text.text_encoders import TextEncoders, load_text_encoders
from hidream.types import Size, Storage, Variant

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HOST = torch.device("cpu")
PLANNED_SIZE = Size(1024, 1024)
"""What the memory is planned for. Larger sizes take more while they are drawn: `hidream info --plan --size` tells."""
COPIES_SHARE = 1 / 32
"""Of the machine's memory that a transformer on a CPU may take to be copied for speed."""
TEXT_CACHE_BYTES = 2**29
"""For embeddings of earlier prompts, in host memory: about a dozen of the published model's, 35 MB each."""


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

    Where each part lives, and in which type, follows from the memory there is (`plan.py`): `memory_gb` limits the
    device's; `storage` names a `types.Storage` for the large matrices, instead of "auto". `loras` is a folder whose
    LoRAs requests may name (`lora_folder.py`). `hash_cache` is a file that remembers the digests of large weights.
    `compiled` has torch.compile make the transformer's blocks; None means on a CUDA device, unless the blocks are
    streamed.

    Raises CheckpointError when a part is missing or does not fit; ConfigurationError on an unknown device, dtype or
    storage, and when there is not enough memory.
    """
    if checkpoint is None:
        checkpoint = embedded(variant)
    elif isinstance(checkpoint, Path):
        checkpoint = Checkpoint(checkpoint)
    checkpoint = checkpoint.of_variant(variant)
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    asked = plan_input.Asked(variant, PLANNED_SIZE, resolve_storage(storage), kind, loras)
    plan = settle(checkpoint, asked, where, memory_gb)
    model = carry_out(
        plan, checkpoint, variant, where, kind, loras, weights_hash(checkpoint.weight_files(), hash_cache)
    )
    stay = plan.part(BLOCKS).placement is Placement.DEVICE or where == HOST
    if compiled and not stay:
        raise ConfigurationError("compiled is on, and the blocks do not stay on the device; accepted: off, or auto")
    if compiled or (compiled is None and where.type == "cuda" and stay):
        model.transformer.compile_blocks()
    return _for_cpu(model) if where == HOST and kind is torch.float32 and not compiled else model


def _for_cpu(model: Model) -> Model:
    """Lay a small model's matrices out for the CPU, and add a twin in bfloat16 where that is faster.

    Both are copies of the weights, so both are for models that take little of the memory; quantised ones have none.
    """
    linear = [module for module in model.transformer.modules() if isinstance(module, Linear)]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    small = sum(p.nbytes for p in model.transformer.parameters()) < COPIES_SHARE * memory_bytes
    if not small or any(each.weight is None or each.weight.dtype is not torch.float32 for each in linear):
        return model
    if matmul.available():
        model.transformer.lay()
    if not bfloat16.gains():
        return model
    logger.info("bfloat16_twin this CPU multiplies bfloat16 faster: for the modes balanced and turbo")
    return dataclasses.replace(model, twin=bfloat16.twin(model.transformer))


def settle(checkpoint: Checkpoint, asked: plan_input.Asked, device: torch.device, memory_gb: float) -> Plan:
    """Plan where the parts of a checkpoint live on this machine. Raises ConfigurationError when nothing fits."""
    shape, options = plan_input.whole(checkpoint, asked)
    answer = plan(hardware_of(device, memory_gb), shape, options)
    if not answer.fits:
        raise ConfigurationError(
            f"the model does not fit into the memory there is: {plan_report.verdict(answer, shape)}"
        )
    for reason in plan_report.reasons(answer):
        logger.info("memory_plan %s", reason)
    return answer


def carry_out(
    plan: Plan,
    checkpoint: Checkpoint,
    variant: Variant,
    device: torch.device,
    dtype: torch.dtype,
    loras: Path | None,
    digest: str,
) -> Model:
    """Load every part to where the plan has it, and let it come to the device when it is needed."""

    def home(name: str) -> torch.device:
        return device if plan.part(name).placement is Placement.DEVICE else HOST

    storage = plan.part(BLOCKS).storage
    transformer = load_transformer(checkpoint, device, dtype, storage, lambda key: home(part_of(key)))
    vae = load_autoencoder(checkpoint, home(VAE), plan_input.AUTOENCODER_DTYPES.get(dtype, dtype))
    if plan.tile_px:
        vae.tile(plan.tile_px)
    compute = f"{device.type}-{str(dtype).removeprefix('torch.')}" + f"-{storage}" * (storage is not Storage.COMPUTE)
    return Model(
        variant=variant,
        versions=f"hidream-i1-{variant}/{digest}/{{mode}}/{compute}/{hidream.__version__}",
        text=_text(plan, checkpoint, home(ENCODERS[0]), device, dtype, digest),
        transformer=transformer,
        vae=vae,
        best_tokens=_best_tokens(checkpoint, transformer),
        device=device,
        dtype=dtype,
        refines=checkpoint.index().get("_refines", True),
        loras=LoraFolder(loras, lora.layers(transformer)),
        phases=_phases(plan, transformer, vae, device) if device != HOST else Phases(),
    )


def _text(
    plan: Plan, checkpoint: Checkpoint, home: torch.device, device: torch.device, dtype: torch.dtype, digest: str
) -> TextEncoders:
    """Load the encoders. What the host computes is kept as its file has it rather than blown up to float32."""
    on_host = plan.part(ENCODERS[0]).placement is Placement.HOST
    storages = [plan.part(name).storage for name in ENCODERS]
    if on_host:
        storages = [Storage.STORED if storage is Storage.COMPUTE else storage for storage in storages]
    return dataclasses.replace(
        load_text_encoders(checkpoint, home, torch.float32 if on_host else dtype, storages),
        device=device,
        dtype=dtype,
        in_turn=plan.part(ENCODERS[0]).placement is Placement.IN_TURN and device != HOST,
        cache=TextCache(TEXT_CACHE_BYTES, HOST),
        identity=digest,
    )


def _phases(plan: Plan, transformer: Transformer, vae: Autoencoder, device: torch.device) -> Phases:
    """Let what lives in host memory visit the device."""
    phases = Phases()
    if plan.part(MODULATIONS).placement is Placement.STREAMED:
        conditioning_streamed(transformer, device)
    if plan.part(BLOCKS).placement is Placement.STREAMED:
        phases = dataclasses.replace(phases, denoising=blocks_streamed(transformer, device, plan.staying))
    elif plan.part(BLOCKS).placement is Placement.IN_TURN:
        phases = dataclasses.replace(phases, denoising=blocks_in_turn(transformer, device))
    if plan.part(VAE).placement is Placement.IN_TURN:
        phases = dataclasses.replace(phases, autoencoding=autoencoder_in_turn(vae, device))
    return phases


def hardware_of(device: torch.device, memory_gb: float) -> Hardware:
    """Ask this machine what there is; `memory_gb` (10^9 bytes) limits the device's memory, or the machine's own."""
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = round(memory_gb * 1e9) or sys.maxsize
    if device.type in ("cpu", "mps"):
        return Hardware(device.type, 0, min(host_bytes, limit), fp8=device.type == "cpu")
    free, _total = torch.cuda.mem_get_info(device)
    return Hardware(device.type, min(free + CONTEXT_BYTES, limit), host_bytes)


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


def _best_tokens(checkpoint: Checkpoint, transformer: Transformer) -> int:
    """Image tokens of the area the model draws best: 1024² pixels, unless the configuration says otherwise.

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
