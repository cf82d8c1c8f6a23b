"""The recipe: `config.toml` as frozen values. An unknown key is an error of the dataclass that has no such field."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hidream.model.network.config import TransformerConfig
from hidream.types import Variant
from scenes import Extent

CONFIG = Path(__file__).parent / "config.toml"
BEST_SIDE = 8
"""Tokens along each side of the square that the model draws best."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the autoencoder's training on cut-outs of `side` pixels.

    `noise` is on the latents, in shares of their spread; `sharpness` weighs absolute differences beside the squares.
    """

    side: int
    batch: int
    steps: int
    noise: float = 0.0
    sharpness: float = 0.0


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """Shape and training of the autoencoder."""

    widths: list[int]
    encoder_layers: list[int]
    decoder_layers: list[int]
    latent_channels: int
    muon_rate: float
    adamw_rate: float
    phases: list[Phase]

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.widths) - 1)


@dataclass(frozen=True, slots=True)
class Text:
    """Shapes of the tokenizer and the four encoders, and their training on captions."""

    tokens: int
    vocabulary: int
    captions: int
    clip_width: int
    clip_layers: int
    t5_width: int
    t5_layers: int
    llama_width: int
    muon_rate: float
    adamw_rate: float
    batch: int
    steps: int
    looks: float


@dataclass(frozen=True, slots=True)
class Pool:
    """Images that are encoded once and drawn often: so many at first, per step, and at most."""

    start: int
    per_step: int
    most: int


@dataclass(frozen=True, slots=True)
class Pretrain:
    """Training of Full; Muon changes its matrices every `muon_every` steps, `object_weights` are shares in the loss."""

    adamw_rate: float
    muon_rate: float
    muon_every: int
    warm_up: int
    fall: float
    ema: float
    batch: int
    steps: int
    caption_dropout: float
    balance: float
    square: float
    reading: float
    reading_block: int
    object_weights: dict[Extent, float]


@dataclass(frozen=True, slots=True)
class Distill:
    """Distillation of one variant."""

    guidance: float
    steps: int
    muon_rate: float
    adamw_rate: float
    batch: int


@dataclass(frozen=True, slots=True)
class Words:
    """Training of the encoders on nouns."""

    muon_rate: float
    adamw_rate: float
    batch: int
    steps: int


@dataclass(frozen=True, slots=True)
class Judge:
    """Training of the classifier that scores."""

    muon_rate: float
    adamw_rate: float
    batch: int
    steps: int


@dataclass(frozen=True, slots=True)
class Run:
    """How often a stage saves and reports, and whether transformers are compiled, which takes a C++ compiler."""

    checkpoint_s: float
    log_every: int
    compiled: bool


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the model."""

    seed: int
    autoencoder: Autoencoder
    text: Text
    words: Words
    transformer: TransformerConfig
    pool: Pool
    pretrain: Pretrain
    distill: dict[Variant, Distill]
    judge: Judge
    run: Run

    @property
    def side_px(self) -> int:
        """Pixels along each side of the square that the model draws best."""
        return BEST_SIDE * self.transformer.patch_size * self.autoencoder.factor


def load(path: Path = CONFIG) -> Recipe:
    """Read a recipe."""
    values: dict[str, Any] = tomllib.loads(path.read_text())
    text, autoencoder = Text(**values["text"]), values["autoencoder"]
    phases = [Phase(**phase) for phase in autoencoder.pop("phases")]
    weights = {Extent(name): float(value) for name, value in values["pretrain"]["object_weights"].items()}
    return Recipe(
        seed=values["seed"],
        autoencoder=Autoencoder(**autoencoder, phases=phases),
        text=text,
        words=Words(**values["words"]),
        transformer=_transformer(values["transformer"], text, autoencoder["latent_channels"]),
        pool=Pool(**values["pool"]),
        pretrain=Pretrain(**values["pretrain"] | {"object_weights": weights}),
        distill={Variant(name): Distill(**value) for name, value in values["distill"].items()},
        judge=Judge(**values["judge"]),
        run=Run(**values["run"]),
    )


def _transformer(given: dict[str, Any], text: Text, channels: int) -> TransformerConfig:
    """Fill in what follows from the other parts: one Llama layer feeds each block."""
    config = TransformerConfig(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()},
        in_channels=channels,
        out_channels=channels,
        caption_channels=(text.t5_width, text.llama_width),
        text_emb_dim=2 * text.clip_width,
        llama_layers=tuple(range(given["num_layers"] + given["num_single_layers"])),
    )
    config.check()
    return config
