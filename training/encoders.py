"""Stage 2: tokenizers and the four text encoders, of HiDream-I1's own classes and very small.

One byte-level BPE, lower-cased, trained on captions; each encoder has its own template around it, as the real ones do.
The encoders learn what captions mean before the transformer is there, are taught more words (`words.py`), and then stay
as they are, as the published ones do. From each thing that the transformer will be given (the CLIPs' pooled texts, T5's
tokens, each layer of Llama) one must be able to read off the answers to `questions.py`, and, linearly, what the
drawings of the caption's objects look like: their latents. So names lie in their embeddings as their drawings do, and
the transformer is told what it would have to learn by heart, through noise and at many times the cost. One that had to
teach the encoders itself ignored the objects' names after 55,000 images.

    python training/encoders.py [--runs FOLDER]
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
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
from compose import Sprites, compose
from concepts import Concepts, load_concepts
from hidream.model.checkpoint.checkpoint import Checkpoint
from hidream.model.latents.autoencoder import load_autoencoder
from hidream.model.latents.shape import Grid
from hidream.model.network.transformer import norm
from hidream.model.text.text_encoders import TextEmbeds, TextEncoders
from latents import draw_scenes
from muon import Optimisers, rise_and_fall
from placement import place
from questions import heads, loss_of, truths, verdicts
from recipe import Recipe, Text
from scenes import Extent, Scene
from stage import Dice, Stage, arguments, done, quick

PAD, BOS, UNK, EOS = "<pad>", "<bos>", "<unk>", "<eos>"
WARM_UP = 50
ENDS = ("embed", "shared", "relative", "readers", "viewers")
"""Parts of the names of what AdamW trains, beside the vectors: embeddings, readers and viewers."""
OBJECTS, GLANCES = 2, 2
"""Objects of a caption, and how often a viewer looks at the tokens for each."""
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

    def __init__(self, widths: Sequence[int], concepts: Concepts) -> None:
        super().__init__()
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


class Viewer(nn.Module):
    """Says what the drawings of a caption's objects look like, by its tokens."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.seek = nn.Linear(width, GLANCES * OBJECTS)
        self.look = nn.Linear(GLANCES * width, values)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L, W] to the looks of the first and of the second object, [B, 2, V]."""
        tokens = norm(tokens)
        weights = self.seek(tokens).softmax(1)  # [B, L, glances of both objects]
        seen = rearrange(weights.mT @ tokens, "b (o g) w -> b o (g w)", o=OBJECTS)
        return self.look(seen)


def draw_looks(config: Recipe, concepts: Concepts, runs: Path, device: torch.device) -> Tensor:
    """Encode every drawing, normal and big on a gray ground: [objects, styles, V], with mean 0 and variance 1."""
    vae, sprites = load_autoencoder(Checkpoint(runs / "autoencoder"), device, torch.float32), Sprites.load(device)
    grid, token_px = Grid(recipe.BEST_SIDE, recipe.BEST_SIDE), config.side_px // recipe.BEST_SIDE
    size, looks = config.transformer.patch_size, []
    for extent in (Extent.NORMAL, Extent.BIG):
        there = place(Scene(tuple(concepts.objects)[:1], "flat", "gray", extent=extent), grid)[0]
        rows, columns = (slice(size * x, size * (x + there.size)) for x in (there.row, there.column))
        for name in concepts.objects:
            scenes = [Scene((name,), style, "gray", extent=extent) for style in concepts.styles]
            with torch.no_grad(), quick(device):
                latent = vae.encode(compose(scenes, sprites, grid, token_px, 0)).float()
            looks.append(latent[:, :, rows, columns].flatten(1))
    half = len(concepts.objects)
    whole = torch.cat((torch.stack(looks[:half]), torch.stack(looks[half:])), dim=-1)
    whole = whole - whole.mean((0, 1))
    return whole / whole.std()


def looks_of(scenes: Sequence[Scene], looks: Tensor, concepts: Concepts) -> tuple[Tensor, Tensor]:
    """What the objects of B scenes look like, [B, 2, V], and whether there are so many, [B, 2]."""
    names, styles = list(concepts.objects), list(concepts.styles)
    objects = torch.tensor([[names.index(name) for name in (*s.objects, s.objects[0])[:OBJECTS]] for s in scenes])
    style = torch.tensor([styles.index(s.style) for s in scenes])
    there = torch.tensor([[True, len(s.objects) == OBJECTS] for s in scenes])
    return looks[objects, style[:, None]], there.to(looks.device)


def train(config: Recipe, runs: Path, folder: Path, device: torch.device) -> None:
    """Train, or go on, and write tokenizers and encoders into `folder`, which the product loads."""
    if done(folder):
        return
    concepts, settings = load_concepts(), config.text
    text = build(config, concepts)
    looks = draw_looks(config, concepts, runs, device)
    widths = [2 * settings.clip_width, settings.t5_width, *[settings.llama_width] * len(text.encoders[3].layers)]
    encoders, readers = nn.ModuleList(text.encoders).to(device), Readers(widths, concepts).to(device)
    viewers = nn.ModuleList(Viewer(width, looks.shape[-1]) for width in widths).to(device)
    rates = functools.partial(rise_and_fall, warm_up=WARM_UP, steps=settings.steps)
    whole = nn.ModuleDict({"encoders": encoders, "readers": readers, "viewers": viewers})
    optimiser = Optimisers(whole, rates, settings.adamw_rate, settings.muon_rate, ENDS)
    dice = Dice(config.seed)
    stage = Stage(folder, config.run, {"whole": whole, "optimiser": optimiser, "dice": dice})
    for _ in stage.steps(settings.steps):
        wording, scenes = random.Random(dice.seed()), draw_scenes(dice.seed(), settings.batch, concepts)
        extents = torch.tensor([list(Extent).index(scene.extent) for scene in scenes])
        truth = {k: v.to(device) for k, v in (truths(scenes, concepts) | {"extent": extents}).items()}
        wanted, there = looks_of(scenes, looks, concepts)
        with quick(device):
            embeds = text.encode([caption(scene, wording, concepts) for scene in scenes])
            answers = readers(embeds)
            given = (embeds.pooled[:, None], embeds.t5, *embeds.llama)
            views = [viewer(tokens) for viewer, tokens in zip(viewers, given, strict=True)]
        reading = torch.stack([loss_of(each, truth) for each in answers]).mean()
        errors = torch.stack([F.mse_loss(view[there].float(), wanted[there]) for view in views])
        optimiser.step(reading + settings.looks * errors.mean())
        right = torch.stack([verdicts(each, truth)["objects"].float().mean() for each in answers])
        pooled, t5, *_, llama = errors
        stage.report(reading=reading, right=right.mean(), pooled=pooled, t5=t5, llama=llama)
    save(text, folder)
    stage.finish()


def save(text: TextEncoders, folder: Path) -> None:
    """Write tokenizers and encoders into the diffusers layout."""
    save_encoders(text.encoders, folder)
    for suffix, tokenizer in zip(TEMPLATES, text.tokenizers, strict=True):
        tokenizer.save_pretrained(folder / f"tokenizer{suffix}")


def save_encoders(encoders: Sequence[transformers.PreTrainedModel], folder: Path) -> None:
    """Write the encoders, in 16 bit, into the diffusers layout."""
    for suffix, encoder in zip(TEMPLATES, (*encoders[:3], _with_head(encoders[3])), strict=True):
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
    train(recipe.load(given.config), given.runs, given.runs / "encoders", given.device)


if __name__ == "__main__":
    main()
