"""ComfyUI's naming schemes, against diffusers' own converters and the tensors that the files were written from."""

from __future__ import annotations

import pytest
import torch
import transformers
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_open_clip_checkpoint

import comfy_files
from hidream.formats.comfy import (
    autoencoder_names,
    clip_names,
    llama_names,
    t5_names,
    without_prefix,
)

ONE = torch.ones(2, 2)


def test_the_autoencoder_is_renamed_as_diffusers_does():
    channels = (8, 16, 24, 32)
    module = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    state = module.state_dict()
    published = comfy_files.flux_names(state, len(channels))
    assert {"decoder.up.3.upsample.conv.weight", "encoder.mid.attn_1.q.weight"} <= published.keys()
    theirs = convert_ldm_vae_checkpoint(published, module.config)
    ours = autoencoder_names(published)
    assert ours.keys() == theirs.keys() == state.keys()
    assert all(torch.equal(ours[key], theirs[key]) and torch.equal(ours[key], state[key]) for key in state)
    assert autoencoder_names(state) == state


def test_open_clip_is_renamed_as_diffusers_does():
    torch.manual_seed(0)
    width = 32
    module = transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            vocab_size=8, hidden_size=width, intermediate_size=64, projection_dim=width, num_hidden_layers=2
        )
    )
    layer = {"ln_1": width, "ln_2": width, "attn.out_proj": (width, width), "mlp.c_fc": (64, width)}
    layer["mlp.c_proj"] = (width, 64)
    published = {
        "positional_embedding": torch.randn(77, width),
        "token_embedding.weight": torch.randn(8, width),
        "text_projection": torch.randn(width, width),
        "ln_final.weight": torch.randn(width),
        "ln_final.bias": torch.randn(width),
        "logit_scale": torch.tensor(1.0),
    }
    for i in range(2):
        at = f"transformer.resblocks.{i}"
        published[f"{at}.attn.in_proj_weight"] = torch.randn(3 * width, width)
        published[f"{at}.attn.in_proj_bias"] = torch.randn(3 * width)
        for name, shape in layer.items():
            published[f"{at}.{name}.weight"] = torch.randn(shape)
            published[f"{at}.{name}.bias"] = torch.randn(shape if isinstance(shape, int) else shape[0])
    theirs = convert_open_clip_checkpoint(module, published, prefix="")
    ours = clip_names(published)
    assert ours.keys() == module.state_dict().keys() == {key for key in theirs if "position_ids" not in key}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_published_clip_stays_as_it_is_but_for_what_no_module_has():
    kept = {"text_model.encoder.layers.0.mlp.fc1.weight": ONE, "text_projection.weight": ONE}
    extra = {"logit_scale": ONE, "text_model.embeddings.position_ids": torch.arange(3)}
    assert clip_names(kept | extra) == kept


def test_t5_keeps_one_embedding_and_no_decoder():
    block = {"encoder.block.0.layer.0.SelfAttention.q.weight": ONE}
    shared, embedded = {"shared.weight": ONE}, {"encoder.embed_tokens.weight": 2 * ONE}
    extra = {"decoder.block.0.layer.0.SelfAttention.q.weight": ONE, "lm_head.weight": ONE, "spiece_model": ONE}
    assert t5_names(block | shared | extra) == block | shared
    assert t5_names(block | shared | embedded) == block | shared
    assert t5_names(block | embedded) == block | {"shared.weight": embedded["encoder.embed_tokens.weight"]}


def test_llama_loses_its_head():
    head = {"lm_head.weight": ONE, "model.layers.0.self_attn.rotary_emb.inv_freq": ONE}
    assert llama_names({"model.norm.weight": ONE} | head) == {"norm.weight": ONE}
    assert llama_names({"norm.weight": ONE}) == {"norm.weight": ONE}


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "text_encoders.t5xxl.transformer."])
def test_prefixes_are_taken_off(prefix):
    assert without_prefix({f"{prefix}a": ONE, f"{prefix}scaled_fp8": ONE}).keys() == {"a", "scaled_fp8"}
    mixed = {f"{prefix}a": ONE, "b": ONE}
    assert without_prefix(mixed) == mixed
