"""Warnings about the part of a prompt that the four encoders do not read.

Every encoder reads 128 tokens, as in the model's training. The rest is truncated where the reference truncates it, but
never silently. All four have the same limit, because that gives the best results: with more than 128 tokens for T5,
images wash out and end as noise (HiDream-I1#33, ComfyUI#7620 and #7622); with 256 for Llama, the validation loss rises
a little (diffusion-pipe, docs/supported_models.md); and the model's makers have "not tested" 218 tokens in all
(HiDream-I1#18). For longer prompts, note that Llama has nearly all the effect, and that each encoder may be given its
own prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from hidream.parts import ENCODERS
from hidream.request import Prompts

WORDS_SHOWN, CHARS_SHOWN = 6, 60
WORD_MAX_CHARS = 30
"""Longest word that is named whole when it is cut in its middle (some scripts have no spaces)."""


class Truncation(NamedTuple):
    """What an encoder did not read of a prompt."""

    limit: int  # tokens that it read
    tokens: int  # tokens that there are
    words: str  # the first words it did not read


def truncation_of(tokenizer: Any, text: str, limit: int) -> Truncation | None:  # noqa: ANN401 - transformers is untyped here
    """Say what is lost of `text` when it is cut at `limit` tokens; None when nothing but white space is."""
    tokens = len(tokenizer(text, verbose=False)["input_ids"])  # verbose=False: it would warn of the length itself
    if tokens <= limit:
        return None
    read = tokenizer(text, max_length=limit, truncation=True, return_offsets_mapping=True)["offset_mapping"]
    words = _from_word(text, max(end for _, end in read)).split()
    if not words:
        return None
    shown = " ".join(words[:WORDS_SHOWN])[:CHARS_SHOWN]
    return Truncation(limit, tokens, shown)


def warnings(prompts: Sequence[Prompts], tokenizers: Sequence[Any], limits: Sequence[int]) -> tuple[str, ...]:
    """Say of each prompt which encoders do not read all of it. The texts quote the prompt: not for a log."""
    texts: dict[str, None] = {}
    for prompt in prompts:
        cuts: dict[Truncation, list[str]] = {}
        for part, tokenizer, limit, text in zip(ENCODERS, tokenizers, limits, prompt.each, strict=True):
            if lost := truncation_of(tokenizer, text, limit):
                cuts.setdefault(lost, []).append(part.title)
        texts |= dict.fromkeys(_sentence(names, lost) for lost, names in cuts.items())
    return tuple(texts)


def _sentence(names: list[str], lost: Truncation) -> str:
    return (
        f"the prompt is too long for {', '.join(names)}: {lost.tokens} tokens, of which {lost.limit} are read; "
        f"ignored from {lost.words!r} on"
    )


def _from_word(text: str, start: int) -> str:
    """What follows `start`, with the whole of the word that is cut there."""
    if re.match(r"\w", text[start:]) and (head := re.search(rf"\b\w{{1,{WORD_MAX_CHARS}}}$", text[:start])):
        start = head.start()
    return text[start:]
