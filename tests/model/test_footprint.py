"""The arithmetic of `footprint.py` against the real modules on meta, and against real code on fake tensors."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import tiny
import torch
import transformers
from live_bytes import LiveBytes, peak_of

from hidream.formats.quantized import Quantized, Scheme, quantize
from hidream.model.checkpoint.checkpoint import embedded
from hidream.model.latents.autoencoder_kl import AutoencoderKL, Config
from hidream.model.memory import footprint
from hidream.model.memory.footprint import PUBLISHED, TEXT_TOKENS, ModelShape
from hidream.model.network.config import TransformerConfig
from hidream.model.network.kernels import Experts, Kernels
from hidream.model.network.linear import Linear
from hidream.model.network.lora import LowRankDelta
from hidream.model.network.moe import Gate
from hidream.model.network.ragged_batch import RaggedBatch
from hidream.model.network.transformer import Transformer
from hidream.model.text.text_encoders import MAX_TOKENS
from hidream.types import Variant, WeightFormat

NANO = TransformerConfig.from_json(embedded(Variant.DEV).config("transformer"))


def encoders() -> tuple[torch.nn.Module, ...]:
    """The published encoders on meta: HiDream's long CLIPs, T5 v1.1 XXL, Llama 3.1 8B."""

    def clip(width: int, layers: int, heads: int) -> transformers.CLIPTextConfig:
        return transformers.CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=248,
            projection_dim=width,
        )

    t5 = transformers.T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
    )
    llama = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    return (
        transformers.CLIPTextModelWithProjection(clip(768, 12, 12)),
        transformers.CLIPTextModelWithProjection(clip(1280, 32, 20)),
        transformers.T5EncoderModel(t5),
        transformers.LlamaModel(llama),
    )


def flux_vae() -> AutoencoderKL:
    """FLUX's autoencoder, as HiDream-I1's `vae/config.json` describes it."""
    return AutoencoderKL(
        Config(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )


@pytest.mark.parametrize("config", [TransformerConfig(), tiny.CONFIG, NANO], ids=["published", "tiny", "nano"])
def test_the_parts_of_a_transformer_have_the_values_of_the_modules(config):
    with torch.device("meta"):
        module = Transformer(config)
    linear = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, Linear)}
    counted = {
        part: [0, 0, 0] for part in (footprint.BLOCKS, footprint.MODULATIONS, footprint.CAPTIONS, footprint.REST)
    }
    for key, value in module.state_dict().items():
        counts = counted[footprint.part_of(key)]
        counts[0 if key in linear else 1] += value.numel()
        counts[2] = max(counts[2], value.numel() if key in linear else 0)
    accounted = footprint.transformer_weights(config)
    assert {part: dataclasses.astuple(weights)[:2] for part, weights in accounted.items()} == {
        part: tuple(counts[:2]) for part, counts in counted.items()
    }
    for part in (footprint.BLOCKS, footprint.MODULATIONS, footprint.CAPTIONS):
        assert accounted[part].largest == counted[part][2]


def test_the_published_parts_are_those_of_the_published_configurations():
    with torch.device("meta"):
        assert ModelShape.of(TransformerConfig(), encoders(), flux_vae(), 8) == dataclasses.replace(
            PUBLISHED, vae=footprint.measure(flux_vae())
        )
        assert sum(p.numel() for p in flux_vae().parameters()) == PUBLISHED.vae.others + PUBLISHED.vae.matrices
    total = sum(w.matrices + w.others for w in footprint.transformer_weights(TransformerConfig()).values())
    assert total == 17_105_733_184  # of the published files
    assert TEXT_TOKENS == MAX_TOKENS


@pytest.mark.parametrize("storage", [WeightFormat.FP8, WeightFormat.INT8, WeightFormat.NF4])
def test_stored_bits_are_those_of_the_quantiser(storage):
    matrix = torch.randn(256, 2560)
    stored = quantize(matrix, Scheme(storage)).nbytes
    accounted = footprint.Weights(matrix.numel(), 0, 0).nbytes(storage, 2, 16)
    assert stored <= accounted * 1.01
    assert accounted <= stored * 1.01


def step_peak(tokens: int, batch: int, dtype: torch.dtype, *, fused: bool) -> int:
    """Bytes of one step of real width, with few blocks, as real code has them alive."""
    config = dataclasses.replace(TransformerConfig(), num_layers=1, num_single_layers=2, llama_layers=(0, 1, 2))

    def build() -> Transformer:
        model = Transformer(config, Kernels(fused=fused))
        model.prepare_weights()
        if fused:
            return model
        for layer in (m for m in model.modules() if isinstance(m, Linear)):
            parts = {
                "data": torch.empty(layer.weight.shape, dtype=torch.int8),
                "scale": torch.ones(len(layer.weight), 1),
            }
            layer.store(Quantized(Scheme.INT8, parts, layer.weight.shape))
        return model

    def prepare(model: Transformer) -> functools.partial[object]:
        made = functools.partial(torch.empty, dtype=dtype)
        side = int(tokens**0.5)
        c = model.condition(made(batch, 128, 4096), made(3, batch, 128, 4096), made(batch, 2048), (side, side))
        latent = made(batch, 16, 2 * side, 2 * side)
        return functools.partial(model.velocity, [latent], model.modulations([1.0], c)[:1], RaggedBatch.of([c]))

    return peak_of(build, prepare, dtype)


@pytest.mark.parametrize(
    ("tokens", "batch", "dtype", "fused"),
    [
        (4096, 1, torch.bfloat16, True),
        pytest.param(4096, 1, torch.bfloat16, False, marks=pytest.mark.slow),
        pytest.param(4096, 2, torch.bfloat16, True, marks=pytest.mark.long),
        pytest.param(9216, 1, torch.bfloat16, False, marks=pytest.mark.long),
        pytest.param(1024, 1, torch.float32, False, marks=pytest.mark.long),
    ],
)
def test_a_step_takes_what_the_code_has_alive(tokens, batch, dtype, fused):
    traced = step_peak(tokens, batch, dtype, fused=fused)
    accounted = footprint.step_bytes(TransformerConfig(), tokens, batch, dtype.itemsize, fused=fused)
    assert accounted == pytest.approx(traced, rel=0.03)


NARROW = dataclasses.replace(
    NANO,
    num_layers=1,
    num_single_layers=2,
    num_attention_heads=8,
    caption_channels=(128, 128),
    text_emb_dim=128,
    num_routed_experts=4,
    llama_layers=(0, 1, 2),
)


def step_peak_on_cpu(side: int, *, fused: bool, adapted: bool) -> int:
    """Bytes of one step as a CPU computes it, with every token sent to the same experts.

    Not with fake tensors: how many rows each expert gets is known only when it is computed.
    """
    kernels = Kernels(onednn=True, experts=Experts.PER_EXPERT, fused=fused)
    model = Transformer(NARROW, kernels).eval().requires_grad_(False)
    for gate in (m for m in model.modules() if isinstance(m, Gate)):
        gate.weight.zero_()
    linear = [m for m in model.modules() if isinstance(m, Linear)]
    model.prepare_weights()
    if not fused:
        for layer in linear:
            layer.store(quantize(layer.weight, Scheme.INT8))
    change = {
        m.published: [LowRankDelta(torch.randn(2, m.in_features), torch.randn(m.out_features, 2))] for m in linear
    }
    with torch.inference_mode():
        t5, llama, pooled = torch.randn(1, 128, 128), torch.randn(3, 1, 128, 128), torch.randn(1, 128)
        c = model.condition(t5, llama, pooled, (side, side), deltas=change if adapted else {})
        latent = torch.randn(1, 16, 2 * side, 2 * side)
        modulations, layout = model.modulations([1.0], c), RaggedBatch.of([c])
        with LiveBytes() as live:
            model.velocity([latent], modulations, layout)
    return live.peak


@pytest.mark.parametrize("side", [16, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_on_a_cpu_takes_what_the_code_has_alive(side, fused):
    traced = step_peak_on_cpu(side, fused=fused, adapted=False)
    assert footprint.step_bytes(NARROW, side**2, 1, 4, fused=fused, per_expert=True) == pytest.approx(traced, rel=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_on_a_cpu_takes_at_most_what_is_accounted_for_a_lora(fused):
    traced = step_peak_on_cpu(32, fused=fused, adapted=True)
    accounted = footprint.step_bytes(NARROW, 32**2, 1, 4, fused=fused, adapted=True, per_expert=True)
    assert traced <= accounted <= 1.25 * traced


@pytest.mark.parametrize("side_px", [512, pytest.param(1024, marks=pytest.mark.long)])
def test_decoding_takes_what_the_code_has_alive(side_px):
    def prepare(vae: AutoencoderKL) -> functools.partial[object]:
        return functools.partial(vae.decode, torch.empty(1, 16, side_px // 8, side_px // 8, dtype=torch.bfloat16))

    traced = peak_of(flux_vae, prepare, torch.bfloat16)
    assert traced <= footprint.decode_bytes(PUBLISHED.vae_channels, side_px**2, 2) <= 1.05 * traced


@pytest.mark.slow
@pytest.mark.parametrize("index", [*(pytest.param(i, marks=pytest.mark.long) for i in range(3)), 3])
def test_encoding_takes_at_least_what_the_code_has_alive(index):
    def prepare(encoder: torch.nn.Module) -> functools.partial[object]:
        ids = torch.zeros(1, TEXT_TOKENS, dtype=torch.long)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return functools.partial(encoder, **given, output_hidden_states=index == 3)

    traced = peak_of(lambda: encoders()[index], prepare, torch.bfloat16)
    assert traced <= PUBLISHED.encoders[index].working_bytes(1, 2)


def test_tables_and_conditioning_are_what_the_transformer_makes():
    batch, steps, config = 2, 3, tiny.CONFIG
    model = tiny.ours(tiny.reference())
    _, _, t5, llama, pooled = tiny.inputs(batch, 8, 8, tokens=TEXT_TOKENS)
    c = model.condition(t5, llama, pooled, (4, 4))
    tables = model.modulations([1.0, 2.0, 3.0], c)
    assert footprint.table_bytes(config, batch, steps, 4) == sum(t.nbytes for t in tables)
    assert footprint.conditioning_bytes(config, batch, 4) == c.txt.nbytes + c.block_txt.nbytes


def test_nano_is_measured_from_its_modules():
    from hidream.model.loading import load

    model = load(Variant.DEV)
    shape = ModelShape.of(model.transformer.config, model.text.encoders, model.vae.module, model.vae.factor)
    assert shape.token_px == model.token_px == 32
    assert shape.vae.matrices + shape.vae.others == sum(p.numel() for p in model.vae.module.parameters())
