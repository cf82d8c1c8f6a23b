"""The memory of a model's weights and of computing with them: arithmetic only.

Knows no hardware and no decisions (`plan.py` makes them) and touches no tensor. The numbers of the transformer come
from its configuration, those of the other parts from `measure` or, for the published checkpoints, from `PUBLISHED`;
`tests/model/test_footprint.py` holds all of them against the real modules on meta, and the working memory against the
real code, traced with fake tensors.

Units: everything is in bytes, or in values where the name says so. D is the transformer's width, F the hidden width of
an expert, A the experts that see a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hidream import parts
from hidream.formats.blocks import DEVICE_CHUNK
from hidream.model.latents.autoencoder_dc import AutoencoderDC
from hidream.model.latents.autoencoder_kl import AutoencoderKL
from hidream.model.network.config import TransformerConfig
from hidream.model.network.moe import MULTIPLE_OF
from hidream.types import WeightFormat

TEXT_TOKENS = 128
"""Tokens of one prompt in each encoder (text_encoders.MAX_TOKENS)."""

BLOCKS, MODULATIONS, CAPTIONS, REST = (f"transformer.{name}" for name in ("blocks", "modulations", "captions", "rest"))
ENCODERS = tuple(part.name for part in parts.ENCODERS)
VAE = parts.VAE.name

BITS = {WeightFormat.FP8: 8.02, WeightFormat.INT8: 8.02, WeightFormat.NF4: 4.5}
"""Bits of a matrix' value with its scales: one of 32 bits for a row of at least 2560, or for a block of 64."""

DECODE_BYTES = 4 * 4 * DEVICE_CHUNK
"""Temporaries of decoding a matrix by chunks: four float32 copies of one."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How many values a part has: in the matrices of its linear layers, which may be stored in fewer bits, and else."""

    matrices: int
    others: int
    largest: int  # values of the largest matrix

    def nbytes(self, storage: WeightFormat, compute_bytes: int, stored_bits: float) -> int:
        """Bytes in `storage`; what is no matrix keeps the type it is computed in."""
        bits = {WeightFormat.COMPUTE: 8.0 * compute_bytes, WeightFormat.STORED: stored_bits} | BITS
        return round(self.matrices * bits[storage] / 8) + self.others * compute_bytes

    def dense_bytes(self, storage: WeightFormat, compute_bytes: int) -> int:
        """Temporaries of making the largest matrix dense: its values, and once more times their scale."""
        if storage is WeightFormat.COMPUTE:
            return 0
        return 2 * self.largest * compute_bytes + DECODE_BYTES


@dataclass(frozen=True, slots=True)
class Encoder:
    """A text encoder: its weights and the widths that decide what it takes to run."""

    weights: Weights
    layers: int
    width: int
    hidden: int

    @classmethod
    def of(cls, module: nn.Module) -> Encoder:
        """Measure a text encoder of transformers, which may be on meta."""
        config: Any = module.config
        hidden = max(layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear))
        return cls(measure(module), config.num_hidden_layers, config.hidden_size, hidden)

    def working_bytes(self, prompts: int, compute_bytes: int) -> int:
        """Activations of one call: all layers' states and their stack, and one layer's feed-forward."""
        return prompts * TEXT_TOKENS * compute_bytes * (2 * self.layers * self.width + 8 * self.hidden)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model's parts."""

    transformer: TransformerConfig
    encoders: tuple[Encoder, Encoder, Encoder, Encoder]  # CLIP-L, CLIP-G, T5, Llama
    vae: Weights
    vae_factor: int  # pixels per latent cell, along one side
    vae_channels: int  # of the decoder's widest tensor at full size

    @classmethod
    def of(
        cls,
        transformer: TransformerConfig,
        encoders: Sequence[nn.Module],
        vae: AutoencoderKL | AutoencoderDC,
        factor: int,
    ) -> ModelShape:
        """Measure modules, which may be on meta: the text encoders of transformers, and the autoencoder."""
        clip_l, clip_g, t5, llama = (Encoder.of(module) for module in encoders)
        return cls(transformer, (clip_l, clip_g, t5, llama), measure(vae), factor, vae.widest)

    @property
    def token_px(self) -> int:
        """Pixels that one image token covers, along one side."""
        return self.vae_factor * self.transformer.patch_size


PUBLISHED = ModelShape(
    transformer=TransformerConfig(),
    encoders=(
        Encoder(Weights(85_524_480, 38_257_152, 2_359_296), layers=12, width=768, hidden=3072),
        Encoder(Weights(630_784_000, 64_094_720, 6_553_600), layers=32, width=1280, hidden=5120),
        Encoder(Weights(4_630_511_616, 131_799_040, 41_943_040), layers=24, width=4096, hidden=10_240),
        Encoder(Weights(6_979_321_856, 525_602_816, 58_720_256), layers=32, width=4096, hidden=14_336),
    ),
    vae=Weights(0, 83_819_683, 0),  # mostly convolutions, which keep 16 bits
    vae_factor=8,
    vae_channels=256,
)
"""HiDream-I1 Dev, Full and Fast: the long CLIPs, T5-XXL's encoder, Llama-3.1-8B without its head, FLUX's VAE."""


def measure(module: nn.Module) -> Weights:
    """Count a module's values."""
    matrices = [layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear)]
    total = sum(parameter.numel() for parameter in module.parameters())
    return Weights(sum(matrices), total - sum(matrices), max(matrices, default=0))


def part_of(key: str) -> str:
    """Name the part of the transformer to which a parameter with a published name belongs."""
    if "adaLN_modulation" in key:
        return MODULATIONS
    if "_stream_blocks." in key:
        return BLOCKS
    return CAPTIONS if key.startswith("caption_projection.") else REST


def block_weights(config: TransformerConfig) -> list[Weights]:
    """Weights of each block, without what makes its modulation; the double blocks come first."""
    d, experts = config.dim, config.num_routed_experts
    expert = 3 * d * expert_width(config)
    mixture = experts * expert + 3 * d * _hidden(2 * d)
    single = Weights(4 * d * d + mixture, 4 * d + 2 * d + experts * d, d * expert_width(config))
    double = Weights(8 * d * d + mixture + expert, 8 * d + 4 * d + experts * d, d * expert_width(config))
    return [double] * config.num_layers + [single] * config.num_single_layers


def transformer_weights(config: TransformerConfig) -> dict[str, Weights]:
    """Weights of the transformer's four parts."""
    d, blocks = config.dim, block_weights(config)
    outputs = 12 * d * config.num_layers + 6 * d * config.num_single_layers + 2 * d  # of all modulations
    t5, llama = config.caption_channels
    patch = config.in_channels * config.patch_size**2
    return {
        BLOCKS: Weights(sum(b.matrices for b in blocks), sum(b.others for b in blocks), blocks[0].largest),
        MODULATIONS: Weights(outputs * d, outputs, 12 * d * d),
        CAPTIONS: Weights((len(blocks) * llama + t5) * d, 0, max(t5, llama) * d),
        REST: Weights((256 + config.text_emb_dim + 2 * d + 2 * patch) * d, 5 * d + patch, d * d),
    }


def expert_width(config: TransformerConfig) -> int:
    """Hidden width F of a routed expert."""
    return _hidden(4 * config.dim)


def table_bytes(config: TransformerConfig, batch: int, steps: int, compute_bytes: int) -> int:
    """Modulation tables of all steps."""
    width = 12 * config.num_layers + 6 * config.num_single_layers + 2
    return steps * batch * width * config.dim * compute_bytes


def conditioning_bytes(config: TransformerConfig, batch: int, compute_bytes: int) -> int:
    """What every step looks at: fresh tokens of all blocks and the running text."""
    blocks = config.num_layers + config.num_single_layers
    return batch * (blocks + 2) * TEXT_TOKENS * config.dim * compute_bytes


def embeds_bytes(shape: ModelShape, batch: int, compute_bytes: int) -> int:
    """What the encoders hand over: T5's last state and Llama's states."""
    t5, llama = shape.encoders[2:]
    return batch * TEXT_TOKENS * (t5.width + llama.layers * llama.width) * compute_bytes


def step_bytes(
    config: TransformerConfig,
    tokens: int,
    batch: int,
    compute_bytes: int,
    *,
    fused: bool,
    adapted: bool = False,
    per_expert: bool = False,
) -> int:
    """Working memory of one denoising step with `tokens` image tokens, beside weights and conditioning.

    The peak lies in a single block's routed experts: rows [T·A, D], their hidden values [T·A, 2F] with the SiLU's and
    the product's [T·A, F], and nine tensors [T, D] of the attention before them, which are still alive; eleven where q,
    k and v are views of one. Weights that are not `fused` are concatenated for each block: they exist once during the
    matrix products, and twice while they are concatenated. A LoRA (`adapted`) takes up to three more copies of the
    hidden values, where it changes experts.

    In the `per_expert` loop, as on a CPU, nothing is concatenated: beside the rows [T·A, D] there are, if the last
    expert got every token, the others' results [T·(A−1), D], its own hidden values, twice [T, F], and two of its
    matrices where they are not dense; at the end five tensors [T·A, D], as results are reordered, weighted and added.
    """
    t, a, d, f = batch * (tokens + 2 * TEXT_TOKENS), config.num_activated_experts, config.dim, expert_width(config)
    attention = (11 if fused else 9) * t * d
    if per_expert:
        dense = 0 if fused else 2 * d * f
        last = t * ((2 * a - 1) * d + 2 * f + (3 * f if adapted else 0)) + dense
        return compute_bytes * (attention + max(last, 5 * t * a * d))
    experts = t * a * (4 * f + d + (6 * f if adapted else 0))
    stack = 0 if fused else config.num_routed_experts * 3 * d * f
    return compute_bytes * (attention + max(stack + experts, 2 * stack))


def decode_bytes(channels: int, pixels: int, compute_bytes: int) -> int:
    """Working memory of decoding: in the last stage a tensor, its norm and its SiLU are alive, and the image."""
    return pixels * (3 * channels * compute_bytes + 2 * 3 * 4)


def _hidden(inner: int) -> int:
    """Hidden width of a SwiGLU (moe.py)."""
    return -(-int(2 * inner / 3) // MULTIPLE_OF) * MULTIPLE_OF
