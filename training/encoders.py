"""Stage 2: tokenizers and the four text encoders, of HiDream-I1's own classes and very small.

One byte-level BPE, lower-cased, trained on captions; each encoder has its own template around it, as the real ones do.
The encoders learn what captions mean before the transformer is there, and then stay as they are, as the published
ones do. Each thing that the transformer will be given (the CLIPs' pooled texts, T5's tokens, each layer of Llama) must
answer the `questions.py`; and those that hold a whole caption must tell a small decoder, which is shown no noise and
has no depth, what the picture looks like. So names lie in their embeddings as their pictures do, and the transformer
is told what it would have to learn by heart, through noise and at many times the cost. One that had to teach the
encoders itself ignored the objects' names after 55,000 pictures.

    python training/encoders.py [--runs FOLDER]
"""

from __future__ import annotations

import functools
import random
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from einops import rearrange
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

import recipe
from captions import caption
from concepts import Concepts, load_concepts
from hidream.model.text import TextEmbeds, TextEncoders
from hidream.model.transformer import norm
from latents import draw_scenes, latents_of
from muon import Optimisers, rise_and_fall
from questions import heads, loss_of, truths, verdicts
from recipe import Recipe, Text
from scenes import Extent
from stage import Dice, Stage, arguments, quick

PAD, BOS, UNK, EOS = "<pad>", "<bos>", "<unk>", "<eos>"
WARM_UP = 50
ENDS = ("embed", "shared", "relative", "each.", "extents")
"""Parts of the names of what AdamW trains, beside the vectors: embeddings, readers and sketchers."""
SKETCHER_WIDTH, SKETCHER_HEADS = 192, 4
SPECIAL = [PAD, BOS, UNK, EOS]
TEMPLATES = {"": f"{BOS} $A {EOS}", "_2": f"{BOS} $A {EOS}", "_3": f"$A {EOS}", "_4": f"{BOS} $A"}


def train_tokenizer(captions: list[str], vocabulary: int) -> tokenizers.Tokenizer:
    """Learn a byte-level BPE: whatever is typed, it has tokens for it."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def tokenizer_of(base: tokenizers.Tokenizer, suffix: str, tokens: int) -> transformers.PreTrainedTokenizerFast:
    """Put an encoder's template around the tokenizer. Llama pads with its end token, as the stock pipeline forces."""
    own = tokenizers.Tokenizer.from_str(base.to_str())
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


def build(config: Recipe, concepts: Concepts) -> TextEncoders:
    """Build tokenizers, trained on captions, and random encoders."""
    text, blocks, wording = config.text, len(config.transformer.llama_layers), random.Random(config.seed)
    scenes = draw_scenes(config.seed, text.captions, concepts)
    base = train_tokenizer([caption(scene, wording, concepts) for scene in scenes], text.vocabulary)
    one, two, three, four = (tokenizer_of(base, suffix, text.tokens) for suffix in TEMPLATES)
    torch.manual_seed(config.seed)
    clips = [_clip(text, base.get_vocab_size()) for _ in range(2)]
    return TextEncoders(
        tokenizers=(one, two, three, four),
        encoders=(clips[0], clips[1], _t5(text, base.get_vocab_size()), _llama(text, base.get_vocab_size(), blocks)),
    )


class Readers(nn.Module):
    """For each thing that the transformer is given, one linear reader of every question."""

    def __init__(self, config: Recipe, concepts: Concepts) -> None:
        super().__init__()
        text = config.text
        widths = [2 * text.clip_width, text.t5_width, *[text.llama_width] * len(config.transformer.llama_layers)]
        self.each = nn.ModuleList(heads(width, concepts) for width in widths)
        self.extents = nn.ModuleList(nn.Linear(width, len(Extent)) for width in widths)

    def forward(self, embeds: TextEmbeds) -> list[dict[str, Tensor]]:
        """Embeddings of B captions to the answers that each of them gives."""
        layers = [norm(layer).mean(1) for layer in embeds.llama]
        given = [norm(x) for x in (embeds.pooled, embeds.t5.mean(1), *layers)]
        return [
            {name: head(x) for name, head in own.items()} | {"extent": extent(x)}
            for x, own, extent in zip(given, self.each, self.extents, strict=True)
        ]


class Sketcher(nn.Module):
    """Says what a square picture's latent is by the tokens of its caption: each place looks at them, and decides."""

    def __init__(self, width: int, config: Recipe) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(recipe.BEST_SIDE**2, SKETCHER_WIDTH))
        self.query = nn.Linear(SKETCHER_WIDTH, SKETCHER_WIDTH)
        self.key_value = nn.Linear(width, 2 * SKETCHER_WIDTH)
        self.hidden = nn.Linear(2 * SKETCHER_WIDTH, 4 * SKETCHER_WIDTH)
        self.out = nn.Linear(4 * SKETCHER_WIDTH, config.transformer.patch_size**2 * config.transformer.in_channels)

    def forward(self, tokens: Tensor, asked: Tensor) -> Tensor:
        """Tokens [B, L, W] to what the `asked` places [N] of the picture should show, [B, N, p·p·C]."""
        places = self.places[asked].expand(len(tokens), -1, -1)
        q, k, v = (
            rearrange(x, "b n (h k) -> b h n k", h=SKETCHER_HEADS)
            for x in (self.query(places), *self.key_value(norm(tokens)).chunk(2, dim=-1))
        )
        seen = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n k -> b n (h k)")
        return self.out(F.silu(self.hidden(torch.cat((places, seen), dim=-1))))


class Sketchers(nn.Module):
    """One for each thing that has a whole caption in it: the pooled texts, T5's tokens, Llama's last layer."""

    def __init__(self, config: Recipe) -> None:
        super().__init__()
        widths = (2 * config.text.clip_width, config.text.t5_width, config.text.llama_width)
        self.each = nn.ModuleList(Sketcher(width, config) for width in widths)

    def forward(self, embeds: TextEmbeds, asked: Tensor) -> list[Tensor]:
        """Embeddings of B captions to what each of them promises of the `asked` places [N]."""
        given = (embeds.pooled[:, None], embeds.t5, embeds.llama[-1])
        return [sketcher(tokens, asked) for sketcher, tokens in zip(self.each, given, strict=True)]


def train(config: Recipe, runs: Path, folder: Path, device: torch.device) -> None:
    """Train, or go on, and write tokenizers and encoders into `folder`, which the product loads."""
    concepts, settings = load_concepts(), config.text
    text = build(config, concepts)
    encoders, readers = nn.ModuleList(text.encoders).to(device), Readers(config, concepts).to(device)
    sketchers = Sketchers(config).to(device)
    rates = functools.partial(rise_and_fall, warm_up=WARM_UP, steps=settings.steps)
    whole = nn.ModuleList((encoders, readers, sketchers))
    optimiser = Optimisers(whole, rates, settings.adamw_rate, settings.muon_rate, ENDS)
    dice = Dice(config.seed)
    parts = {"encoders": encoders, "readers": readers, "sketchers": sketchers, "optimiser": optimiser, "dice": dice}
    stage = Stage(folder, config.run, parts)
    if stage.done:
        return
    source, size = latents_of(config, runs, device), config.transformer.patch_size
    for _ in stage.steps(settings.steps):
        batch = source.batch(dice, settings.batch, 0, square=True)
        extents = torch.tensor([list(Extent).index(scene.extent) for scene in batch.scenes])
        truth = {k: v.to(device) for k, v in (truths(batch.scenes, concepts) | {"extent": extents}).items()}
        picture = rearrange(batch.latent, "b c (h p) (w q) -> b (h w) (p q c)", p=size, q=size)
        asked = torch.randperm(recipe.BEST_SIDE**2, generator=dice.generator)[: settings.sketched].to(device)
        with quick(device):
            embeds = text.encode(batch.captions)
            answers, sketches = readers(embeds), sketchers(embeds, asked)
            reading = torch.stack([loss_of(each, truth) for each in answers]).mean()
        truly = picture[:, asked]
        errors = torch.stack([(sketch.float() - truly).square().mean(-1) for sketch in sketches])  # [3, B, N]
        optimiser.step(reading + settings.sketching * errors.mean())
        right = torch.stack([verdicts(each, truth)["objects"].float().mean() for each in answers])
        of_objects = errors[:, batch.part[:, asked] > 0].mean(1)
        stage.report(
            reading=reading,
            right=right.mean(),
            sketch=errors.mean(),
            **dict(zip(("pooled", "t5", "llama"), of_objects, strict=True)),
        )
    save(text, folder)
    stage.finish()


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
            d_ff=4 * text.t5_width,
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
            intermediate_size=3 * text.llama_width,
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


def main() -> None:
    """Run the stage."""
    given = arguments(__doc__).parse_args()
    train(recipe.load(given.config), given.runs, given.runs / "text", given.device)


if __name__ == "__main__":
    main()
