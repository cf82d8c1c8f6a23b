"""A folder as the official repository has it: its tokenizers, encoders and autoencoder, written by diffusers.

Random weights; the image must be the one that stock diffusers draws from the same folder, square and not, with the
reference's 128 text tokens and padded keys.
"""

from __future__ import annotations

import dataclasses
import string

import numpy as np
import pytest
import tiny
import torch
import transformers
from diffusers import FlowMatchLCMScheduler, HiDreamImagePipeline
from reference import SeededLCM, stock_image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hidream.model.loading import load
from hidream.model.pipeline import generate
from hidream.request import ImageRequest
from hidream.types import Render, Size, Variant

CONFIG = dataclasses.replace(tiny.CONFIG, caption_channels=(64, 64), text_emb_dim=64)
LETTERS = list(string.ascii_lowercase)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    pipeline = HiDreamImagePipeline(
        scheduler=FlowMatchLCMScheduler(shift=6.0),
        vae=tiny.autoencoder_kl(),
        text_encoder=_clip(),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=64, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
            )
        ),
        tokenizer_3=transformers.T5Tokenizer(
            vocab=[(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>", "▁", *LETTERS)], extra_ids=0
        ),
        text_encoder_4=transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=512,
                hidden_size=64,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        ),
        tokenizer_4=_llama_tokenizer(),
        transformer=tiny.reference(CONFIG),
    )
    folder = tmp_path_factory.mktemp("official")
    pipeline.save_pretrained(folder, max_shard_size="1MB")
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").exists()
    assert not (folder / "model_index.json").read_text().count("_default_sample_size")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("size", [Size(256, 256), Size(320, 192)])
def test_draws_the_image_of_stock_diffusers(folder, size):
    model = load(Variant.DEV, folder)
    assert (model.text.tokens, model.token_px, model.best_tokens) == (128, 16, 256)
    stock = HiDreamImagePipeline.from_pretrained(
        folder, scheduler=SeededLCM.from_pretrained(folder / "scheduler"), dtype=torch.float32
    )
    stock.set_progress_bar_config(disable=True)
    stock.default_sample_size = 32
    asked = {"num_inference_steps": 4, "guidance_scale": 0.0, "max_sequence_length": 128}
    expected = stock_image(stock, "a cat on a mat", 7, width=size.width, height=size.height, **asked)
    drawn = Size(expected.shape[2], expected.shape[1])
    request = ImageRequest("a cat on a mat", drawn, seed=7, steps=4, render=Render.REFERENCE)
    difference = np.abs(generate(model, request).pixels - expected.permute(1, 2, 0).numpy() * 255)
    assert difference.max() <= 1.5
    assert expected.std() > 0.01  # there is something to compare


def _clip():
    return transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=32,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=248,
            bos_token_id=52,
            eos_token_id=53,
        )
    )


def _clip_tokenizer():
    pieces = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])


def _llama_tokenizer():
    alphabet = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    special = {"<|begin_of_text|>": 256, "<|eot_id|>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet | special, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=list(special.items())
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", model_max_length=131072
    )
