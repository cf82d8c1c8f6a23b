"""The input of a memory plan from a checkpoint: the sizes of its parts, and how its files store them.

Builds modules on meta and reads headers; loads no weight. `plan.py` makes the plan, `loading.py` carries it out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hidream.errors import ConfigurationError
from hidream.formats.lora_file import values_in
from hidream.formats.quantized import StoredTensor
from hidream.model.checkpoint.assign import resolve_stored
from hidream.model.checkpoint.checkpoint import Checkpoint, config_of_transformer
from hidream.model.checkpoint.encoders import check_fit, open_encoder
from hidream.model.checkpoint.lora_folder import lora_files
from hidream.model.latents.autoencoder import open_autoencoder
from hidream.model.memory import plan_report
from hidream.model.memory.candidates import Hardware, Options
from hidream.model.memory.footprint import ENCODERS, PUBLISHED, Encoder, ModelShape, measure
from hidream.model.memory.plan import Plan, plan
from hidream.model.network.config import TransformerConfig
from hidream.model.network.lora import layers, wants
from hidream.model.network.transformer import Transformer
from hidream.parts import PARTS
from hidream.types import LORAS_MAX, Size, Variant, WeightFormat

logger = logging.getLogger(__name__)

AUTOENCODER_DTYPES = {torch.float16: torch.float32}
"""Where the autoencoder computes in another type than the rest: nano's decoder multiplies 18,000 into more than
float16 holds (up_blocks.4.0.conv1)."""
QUANTIZED = ENCODERS[2:]
"""T5 and Llama; the CLIPs are small and keep 16 bits."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a plan is for: the same for any checkpoint."""

    variant: Variant
    size: Size
    storage: WeightFormat | None  # None takes the best that fits; files of fewer than 16 bits stay as they are
    dtype: torch.dtype  # that is computed in
    loras: Path | None = None
    fewest_bits: int = 4


def plan_checkpoint(checkpoint: Checkpoint, request: PlanRequest, hardware: Hardware) -> Plan:
    """Plan where the parts of a checkpoint live.

    Raises CheckpointError as `complete` does, and ConfigurationError when nothing fits.
    """
    shape, options = complete(checkpoint, request)
    chosen = plan(hardware, shape, options)
    if not chosen.fits:
        verdict = plan_report.verdict(chosen, shape)
        raise ConfigurationError(f"the model does not fit into the available memory: {verdict}")
    for reason in plan_report.reasons(chosen):
        logger.info("memory_plan %s", reason)
    return chosen


def complete(checkpoint: Checkpoint, request: PlanRequest) -> tuple[ModelShape, Options]:
    """Read a checkpoint that must have all parts. Raises CheckpointError as `partial` does, and when one is missing."""
    for name in PARTS:
        checkpoint.part(name)
    return partial(checkpoint, request)


def partial(checkpoint: Checkpoint, request: PlanRequest) -> tuple[ModelShape, Options]:
    """Read the parts that there are; the others count as the published ones, in 16 bits.

    Raises CheckpointError when a file is not what it is named for, or the parts do not fit together.
    """
    shape = PUBLISHED
    transformer, large = dict[str, StoredTensor](), dict[str, StoredTensor]()
    if checkpoint.has("transformer"):
        published = checkpoint.read("transformer", values=False)
        transformer = published.tensors
        shape = dataclasses.replace(shape, transformer=config_of_transformer(checkpoint, published))
    opened = {name: open_encoder(checkpoint, name) for name in ENCODERS if checkpoint.has(name)}
    if len(opened) == len(ENCODERS):
        check_fit([module for module, _ in opened.values()], shape.transformer)
    clip_l, clip_g, t5, llama = (
        Encoder.of(opened[name][0]) if name in opened else usual
        for name, usual in zip(ENCODERS, shape.encoders, strict=True)
    )
    for name in (name for name in QUANTIZED if name in opened):
        large |= {f"{name}.{key}": tensor for key, tensor in opened[name][1].tensors.items()}
    shape = dataclasses.replace(shape, encoders=(clip_l, clip_g, t5, llama))
    if checkpoint.has("vae"):
        vae, _ = open_autoencoder(checkpoint)
        measured, widest = measure(vae.module), vae.module.widest
        shape = dataclasses.replace(shape, vae=measured, vae_factor=vae.factor, vae_channels=widest)
    return shape, _options(request, shape.transformer, transformer, large)


def _options(
    request: PlanRequest,
    config: TransformerConfig,
    transformer: Mapping[str, StoredTensor],
    large: Mapping[str, StoredTensor],
) -> Options:
    usual = Options.of(request.variant, request.size, request.storage or _kept(transformer), request.fewest_bits)
    return dataclasses.replace(
        usual,
        encoders=request.storage or _kept(large),
        stored_bits=_bits(transformer),
        encoder_bits=_bits(large),
        lora_bytes=lora_values(request.loras, config) * request.dtype.itemsize,
        compute_bytes=request.dtype.itemsize,
        decode_bytes=AUTOENCODER_DTYPES.get(request.dtype, request.dtype).itemsize,
    )


def lora_values(folder: Path | None, config: TransformerConfig) -> int:
    """Values of as many LoRAs as one request may name, the largest of a folder; files of other models do not count."""
    files = lora_files(folder)
    if not files:
        return 0
    with torch.device("meta"):
        changed = layers(Transformer(config))
    return sum(sorted((values_in(file, wants(file.stem, changed)) for file in files), reverse=True)[:LORAS_MAX])


def _kept(tensors: Mapping[str, StoredTensor]) -> WeightFormat | None:
    """STORED for files of fewer than 16 bits."""
    return WeightFormat.STORED if tensors and resolve_stored(None, tensors) is WeightFormat.STORED else None


def _bits(tensors: Mapping[str, StoredTensor]) -> float:
    """Bits per value, on average; 16 without any."""
    values: Sequence[StoredTensor] = list(tensors.values())
    return 8 * sum(v.nbytes for v in values) / sum(v.shape.numel() for v in values) if values else 16.0
