"""The four text encoders: a prompt to what the transformer is conditioned on.

Shapes: B prompts, L tokens of one encoder.

Both CLIPs give their projected pooled output, T5 its last hidden state, Llama the hidden state after each of its
layers. The encoders run through `transformers`; all pad to the same length. Attention masks go to T5 and Llama, as in
the reference, and never to the transformer.
Source: diffusers 0.42.1, pipeline_hidream_image.py, lines 205-320.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

from hidream.errors import CheckpointError
from hidream.model.weights import Checkpoint

MAX_TOKENS = 128
"""Tokens per prompt that the model was trained with (the reference's max_sequence_length)."""
CLIP_MAX_TOKENS = 218
"""The reference's cap for the retrained, longer CLIPs."""


class TextEmbeds(NamedTuple):
    """What the encoders say of B prompts."""

    t5: Tensor  # [B, L, D_T5]
    llama: Tensor  # [layers, B, L, D_Llama]
    pooled: Tensor  # [B, D_CLIP-L + D_CLIP-G]


@dataclass(frozen=True, slots=True)
class TextEncoders:
    """Encoders and tokenizers in the order CLIP-L, CLIP-G, T5, Llama."""

    tokenizers: tuple[Any, Any, Any, Any]
    encoders: tuple[Any, Any, Any, Any]

    @property
    def tokens(self) -> int:
        """Length L to which every prompt is padded or cut."""
        return min(MAX_TOKENS, self.tokenizers[2].model_max_length, self.tokenizers[3].model_max_length)

    def encode(self, prompts: Sequence[str]) -> TextEmbeds:
        """Encode B prompts at once."""
        clip_tokens = min(self.tokens, CLIP_MAX_TOKENS)
        pooled = [self.encoders[i](self._tokenize(i, prompts, clip_tokens)["input_ids"]).text_embeds for i in (0, 1)]
        t5 = self.encoders[2](**self._tokenize(2, prompts, self.tokens)).last_hidden_state
        llama = self.encoders[3](
            **self._tokenize(3, prompts, self.tokens), output_hidden_states=True, use_cache=False
        ).hidden_states[1:]  # the first is the embedding's output
        return TextEmbeds(t5=t5, llama=torch.stack(llama), pooled=torch.cat(pooled, dim=-1))

    def _tokenize(self, i: int, prompts: Sequence[str], tokens: int) -> dict[str, Tensor]:
        batch = self.tokenizers[i](
            list(prompts), padding="max_length", max_length=tokens, truncation=True, return_tensors="pt"
        )
        device = self.encoders[i].device
        return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}


def load_text_encoders(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> TextEncoders:
    """Load all four from the checkpoint's folders. Llama comes without its language head, which nothing here needs."""
    classes = (
        transformers.CLIPTextModelWithProjection,
        transformers.CLIPTextModelWithProjection,
        transformers.T5EncoderModel,
        transformers.LlamaModel,
    )
    suffixes = ("", "_2", "_3", "_4")
    tokenizers = [_load_tokenizer(checkpoint.part(f"tokenizer{suffix}")) for suffix in suffixes]
    tokenizers[3].pad_token = tokenizers[3].eos_token  # as the reference does
    encoders = [
        _load_encoder(kind, checkpoint.part(f"text_encoder{suffix}"), dtype).to(device).eval().requires_grad_(False)
        for kind, suffix in zip(classes, suffixes, strict=True)
    ]
    return TextEncoders(
        tokenizers=(tokenizers[0], tokenizers[1], tokenizers[2], tokenizers[3]),
        encoders=(encoders[0], encoders[1], encoders[2], encoders[3]),
    )


def _load_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers is untyped here
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def _load_encoder(kind: Any, folder: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it reports the head that is left out on purpose
    transformers.logging.disable_progress_bar()
    try:
        encoder, info = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the text encoder in {folder} cannot be loaded: {error}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
    if info["missing_keys"]:
        raise CheckpointError(f"the text encoder in {folder} lacks {', '.join(sorted(info['missing_keys'])[:5])}")
    return encoder
