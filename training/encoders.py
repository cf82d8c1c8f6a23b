"""Stage 2: tokenizers and the four text encoders, of HiDream-I1's own classes and very small.

One byte-level BPE, lower-cased, trained on captions; each encoder has its own template around it, as the real ones do.
The encoders start random: they are trained together with the transformer.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from hidream.model.text import TextEncoders
from recipe import Recipe, Text

PAD, BOS, UNK, EOS = "<pad>", "<bos>", "<unk>", "<eos>"
SPECIAL = [PAD, BOS, UNK, EOS]
TEMPLATES = {"": f"{BOS} $A {EOS}", "_2": f"{BOS} $A {EOS}", "_3": f"$A {EOS}", "_4": f"{BOS} $A"}


def train_tokenizer(captions: list[str], vocabulary: int) -> Tokenizer:
    """Learn a byte-level BPE: whatever is typed, it has tokens for it."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def tokenizer_of(base: Tokenizer, suffix: str, tokens: int) -> transformers.PreTrainedTokenizerFast:
    """Put an encoder's template around the tokenizer. Llama pads with its end token, as the stock pipeline forces."""
    own = Tokenizer.from_str(base.to_str())
    own.post_processor = processors.TemplateProcessing(
        single=TEMPLATES[suffix], special_tokens=[(token, own.token_to_id(token)) for token in SPECIAL]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own,
        pad_token=PAD,
        bos_token=BOS,
        unk_token=UNK,
        eos_token=PAD if suffix == "_4" else EOS,
        model_max_length=tokens,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def build(recipe: Recipe, captions: list[str]) -> TextEncoders:
    """Build tokenizers and random encoders."""
    text, blocks = recipe.text, len(recipe.transformer.llama_layers)
    base = train_tokenizer(captions, text.vocabulary)
    tokenizers = [tokenizer_of(base, suffix, text.tokens) for suffix in TEMPLATES]
    torch.manual_seed(recipe.seed)
    clips = [_clip(text, base.get_vocab_size()) for _ in range(2)]
    return TextEncoders(
        tokenizers=(tokenizers[0], tokenizers[1], tokenizers[2], tokenizers[3]),
        encoders=(clips[0], clips[1], _t5(text, base.get_vocab_size()), _llama(text, base.get_vocab_size(), blocks)),
    )


def save(text: TextEncoders, folder: Path) -> None:
    """Write tokenizers and encoders, in 16 bit, into the diffusers layout."""
    whole = (*text.encoders[:3], _with_head(text.encoders[3]))
    for suffix, tokenizer, encoder in zip(TEMPLATES, text.tokenizers, whole, strict=True):
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
        encoder.to("cpu", torch.float16).save_pretrained(folder / f"text_encoder{suffix}")


def _with_head(llama: transformers.LlamaModel) -> transformers.LlamaForCausalLM:
    """Wrap Llama in the class that the published checkpoints have; its head shares the embedding and is never used."""
    whole = transformers.LlamaForCausalLM(llama.config)
    whole.model = llama
    whole.tie_weights()
    return whole


def _clip(text: Text, vocabulary: int) -> transformers.CLIPTextModelWithProjection:
    return transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=text.clip_width,
            intermediate_size=2 * text.clip_width,
            projection_dim=text.clip_width,
            num_hidden_layers=text.clip_layers,
            num_attention_heads=text.clip_width // 32,
            max_position_embeddings=text.tokens,
            pad_token_id=SPECIAL.index(PAD),
            bos_token_id=SPECIAL.index(BOS),
            eos_token_id=SPECIAL.index(EOS),
        )
    )


def _t5(text: Text, vocabulary: int) -> transformers.T5EncoderModel:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=vocabulary,
            d_model=text.t5_width,
            d_kv=32,
            d_ff=2 * text.t5_width,
            num_layers=text.t5_layers,
            num_heads=text.t5_width // 32,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=SPECIAL.index(PAD),
            eos_token_id=SPECIAL.index(EOS),
            decoder_start_token_id=SPECIAL.index(PAD),
            use_cache=False,
        )
    )


def _llama(text: Text, vocabulary: int, blocks: int) -> transformers.LlamaModel:
    """As many layers as the transformer has blocks: layer i feeds block i."""
    return transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=text.llama_width,
            intermediate_size=2 * text.llama_width,
            num_hidden_layers=blocks,
            num_attention_heads=text.llama_width // 32,
            num_key_value_heads=text.llama_width // 64,
            max_position_embeddings=max(64, text.tokens),
            pad_token_id=SPECIAL.index(PAD),
            bos_token_id=SPECIAL.index(BOS),
            eos_token_id=SPECIAL.index(PAD),
            tie_word_embeddings=True,
        )
    )
