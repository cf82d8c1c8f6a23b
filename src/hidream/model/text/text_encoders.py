"""The four text encoders: from a prompt to the embeddings that condition the transformer.

Shapes: B prompts, L tokens of one encoder.

Both CLIPs give their projected pooled output, T5 its last hidden state, Llama the hidden state after each of its
layers. The encoders run through `transformers`; all pad to the same length. `prompts` describes the truncation of
longer prompts. Attention masks go to T5 and Llama, as in the reference, and never to the transformer.
Source: diffusers 0.42.1, pipeline_hidream_image.py, lines 205-320.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hidream.errors import CheckpointError
from hidream.model.checkpoint.checkpoint import Checkpoint
from hidream.model.checkpoint.encoders import load_encoder, load_tokenizer
from hidream.model.memory.offload import on_device
from hidream.model.text.cache import TextCache
from hidream.model.text.prompts import warnings
from hidream.parts import ENCODERS, LLAMA, T5
from hidream.request import Prompts
from hidream.types import WeightFormat

MAX_TOKENS = 128
"""Tokens per prompt that the model was trained with (the reference's max_sequence_length)."""
CLIP_MAX_TOKENS = 218
"""The reference's cap for the retrained, longer CLIPs."""


class TextEmbeds(NamedTuple):
    """The embeddings of B prompts."""

    t5: Tensor  # [B, L, D_T5]
    llama: Tensor  # [layers, B, L, D_Llama]
    pooled: Tensor  # [B, D_CLIP-L + D_CLIP-G]


class Encoded(NamedTuple):
    """The embeddings of B prompts, and warnings for the user."""

    embeds: TextEmbeds
    warnings: tuple[str, ...]  # they quote the prompt: for the result, not for a log


@dataclass(frozen=True, slots=True)
class TextEncoders:
    """Encoders and tokenizers in the order CLIP-L, CLIP-G, T5, Llama.

    `device` and `dtype` are where and in which type the embeddings are wanted; None leaves them as the encoders make
    them. With `sequential_offload`, each encoder lives in host memory and is on `device` only while it encodes, one at
    a time. `together` encodes the texts of one call in one batch: faster where an encoder waits for its weights, and
    equal only within the rounding of its matrix products. Both CLIPs must have a position for every token, else
    CheckpointError.

    `cache` keeps the embeddings of earlier prompts. It may be shared by models whose encoders are the same, as Dev's,
    Full's and Fast's are: `identity` tells the encoders apart (a digest of their weights, and how they are stored).
    """

    tokenizers: tuple[Any, Any, Any, Any]
    encoders: tuple[Any, Any, Any, Any]
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    sequential_offload: bool = False
    together: bool = False
    cache: TextCache | None = None
    identity: str = ""

    def __post_init__(self) -> None:
        assert self.device is not None or not self.sequential_offload, "sequential offload needs a device"
        assert self.identity or self.cache is None, "a cache needs the identity of the encoders"
        for part, encoder, limit in zip(ENCODERS[:2], self.encoders, self.limits, strict=False):
            _check_positions(part.title, encoder, limit)

    @property
    def tokens(self) -> int:
        """Length L to which every prompt is padded or cut."""
        return min(MAX_TOKENS, self.tokenizers[2].model_max_length, self.tokenizers[3].model_max_length)

    @property
    def limits(self) -> tuple[int, int, int, int]:
        """Tokens that each encoder reads."""
        clip_tokens = min(self.tokens, CLIP_MAX_TOKENS)
        return clip_tokens, clip_tokens, self.tokens, self.tokens

    def embed(self, prompts: Sequence[str | Prompts]) -> Encoded:
        """Embed B prompts: from the cache where it has them, each text once, with sequential offload if so set.

        Every text goes through its encoder alone, as in the reference: otherwise rounding, and with it the image, would
        depend on the other texts and on the cache. So the result is the same to the last bit in all these cases, unless
        the texts go `together`, in one batch.
        """
        requested = [prompt if isinstance(prompt, Prompts) else Prompts(prompt) for prompt in prompts]
        parts = [self._recall(i, [prompt.each[i] for prompt in requested]) for i in range(len(ENCODERS))]
        return Encoded(_joined(parts), warnings(requested, self.tokenizers, self.limits))

    def encode(self, prompts: Sequence[str]) -> TextEmbeds:
        """Encode B prompts in one batch where the encoders are: what `embed` does, without its devices and its cache.

        For training: gradients flow.
        """
        return _joined([[self._run(i, prompts)] for i in range(len(ENCODERS))])

    def _recall(self, i: int, texts: Sequence[str]) -> list[Tensor]:
        """Return encoder `i`'s embedding of each text, from the cache if it is there."""
        at = self.device if self.sequential_offload and self.device is not None else self.encoders[i].device
        keys = {text: (self.identity, ENCODERS[i].title, self.limits[i], at.type, self.dtype, text) for text in texts}
        known = {text: self.cache.get(key) if self.cache is not None else None for text, key in keys.items()}
        missing = [text for text, value in known.items() if value is None]
        if missing:
            with on_device(self.encoders[i], at) if self.sequential_offload else nullcontext():
                known |= {text: embeds.to(dtype=self.dtype) for text, embeds in self._each(i, missing)}
        embedded = {text: value.to(self.device or at) for text, value in known.items() if value is not None}
        if self.cache is not None:
            for text in missing:
                self.cache[keys[text]] = embedded[text]
        return [embedded[text] for text in texts]

    def _each(self, i: int, texts: Sequence[str]) -> Iterable[tuple[str, Tensor]]:
        """Yield each of B texts with its embedding, as `_run` makes it of one."""
        if not self.together:
            return ((text, self._run(i, [text])) for text in texts)
        embeds = self._run(i, texts)
        return zip(texts, embeds.split(1, dim=int(ENCODERS[i] is LLAMA)), strict=True)

    def _run(self, i: int, texts: Sequence[str]) -> Tensor:
        """Encode B texts with encoder `i`: CLIP [B, D], T5 [B, L, D], Llama [layers, B, L, D]."""
        encoder, batch = self.encoders[i], self._tokenize(i, texts)
        if ENCODERS[i] is T5:
            return encoder(**batch).last_hidden_state
        if ENCODERS[i] is LLAMA:
            states = encoder(**batch, output_hidden_states=True, use_cache=False).hidden_states
            return torch.stack(states[1:])  # the first is the embedding's output
        return encoder(batch["input_ids"]).text_embeds

    def _tokenize(self, i: int, texts: Sequence[str]) -> dict[str, Tensor]:
        # on the right, as trained, whatever the tokenizer's file says: copies of Llama's that pad on the left are about
        batch = _split(
            self.tokenizers[i],
            list(texts),
            padding="max_length",
            padding_side="right",
            max_length=self.limits[i],
            truncation=True,
            return_tensors="pt",
        )
        device = self.encoders[i].device
        return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}


def _split(tokenizer: Any, texts: list[str], **how: Any) -> Any:  # noqa: ANN401 - transformers is untyped here
    """Call a tokenizer. Raises RuntimeError where its package panics, as on an endless search.

    A panic is no Exception: it would pass the edges that tell whose request an error is. Its words may quote the text.
    """
    try:
        return tokenizer(texts, **how)
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise RuntimeError(f"the tokenizer failed on a text ({type(error).__name__})") from None


def _joined(parts: Sequence[Sequence[Tensor]]) -> TextEmbeds:
    """Concatenate each encoder's embeddings of all prompts."""
    clip_l, clip_g, t5 = (torch.cat(list(part)) for part in parts[:3])
    return TextEmbeds(t5=t5, llama=torch.cat(list(parts[3]), dim=1), pooled=torch.cat((clip_l, clip_g), dim=-1))


def _check_positions(name: str, encoder: Any, tokens: int) -> None:  # noqa: ANN401 - transformers is untyped here
    positions = encoder.config.max_position_embeddings
    if positions < tokens:
        raise CheckpointError(
            f"{name} has {positions} positions, and {tokens} are needed: it is not HiDream's. HiDream's CLIPs were "
            "retrained for longer texts, and with others the images are black; accepted: text_encoder and "
            "text_encoder_2 of a HiDream-I1 repository, or ComfyUI's clip_l_hidream and clip_g_hidream"
        )


def _check_tokenizer(name: str, tokenizer: Any, vocabulary: int) -> None:  # noqa: ANN401 - as above
    """Refuse one that cannot fill up a text, or has tokens that the encoder has not: on a card they end the process."""
    try:
        ids = _split(tokenizer, ["a fox"], padding="max_length", max_length=8, truncation=True)["input_ids"][0]
        largest = max((*ids, *tokenizer.get_vocab().values()))
        longest = tokenizer.model_max_length
        fits = 0 <= min(ids) <= largest < vocabulary and longest >= 8 and len(ids) == 8
    except Exception as error:  # nothing narrower, as in `load_tokenizer`
        raise CheckpointError(f"{name}'s tokenizer cannot be used; accepted: the published one") from error
    if not fits:
        raise CheckpointError(
            f"{name}'s tokenizer has tokens up to {largest:,} and texts of up to {longest!r:.20}; "
            f"accepted: below {vocabulary:,}, the encoder's vocabulary, and texts of 8 and more"
        )


def load_text_encoders(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    storages: Sequence[WeightFormat | None] = (None,) * 4,
) -> TextEncoders:
    """Load all four, their tokenizers first; for `storages` see `checkpoint.load_transformer`."""
    tokenizers = [load_tokenizer(checkpoint, part.tokenizer) for part in ENCODERS]
    tokenizers[3].pad_token = tokenizers[3].eos_token  # as the reference does
    encoders = [
        load_encoder(checkpoint, part.name, device, dtype, storage)
        for part, storage in zip(ENCODERS, storages, strict=True)
    ]
    for part, tokenizer, encoder in zip(ENCODERS, tokenizers, encoders, strict=True):
        _check_tokenizer(part.title, tokenizer, encoder.config.vocab_size)
    return TextEncoders(
        tokenizers=(tokenizers[0], tokenizers[1], tokenizers[2], tokenizers[3]),
        encoders=(encoders[0], encoders[1], encoders[2], encoders[3]),
    )
