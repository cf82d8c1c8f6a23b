"""Stage 3: Full, by flow matching. The transformer and the four text encoders learn together.

For a latent x0, noise ε and a level σ the transformer sees (1 − σ)·x0 + σ·ε and should answer ε − x0. One caption in
ten is emptied, for classifier-free guidance. What is kept is the moving average of the weights.

    python training/pretrain.py [--runs FOLDER]
"""

from __future__ import annotations

import functools
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import encoders
import folders
import recipe
from captions import caption
from compose import Sprites
from concepts import load_concepts
from hidream.model.config import RECIPES, TIMESTEPS
from hidream.model.moe import balance_losses
from hidream.model.shape import Grid
from hidream.model.text import TextEncoders
from hidream.model.transformer import Transformer
from hidream.model.vae import Autoencoder, load_autoencoder
from hidream.model.weights import Checkpoint
from hidream.types import Variant
from latents import Latents, draw_scenes
from muon import Optimisers, rise_and_fall
from stage import Dice, Stage, arguments, quick


class Student(nn.Module):
    """Transformer and text encoders as one module, so that they are averaged, saved and optimised together."""

    def __init__(self, transformer: Transformer, text: TextEncoders) -> None:
        super().__init__()
        self.transformer = transformer
        self.encoders = nn.ModuleList(text.encoders)
        self.tokenizers = text.tokenizers

    @property
    def text(self) -> TextEncoders:
        """The product's own encoders, around this module's weights."""
        first, second, third, fourth = self.encoders
        return TextEncoders(self.tokenizers, (first, second, third, fourth))

    def forward(self, x: Tensor, sigma: Tensor, captions: list[str], grid: Grid) -> Tensor:
        """Velocity of x [B, C, h, w] at noise levels sigma [B]."""
        conditioning = self.transformer.condition(*self.text.encode(captions), grid)
        return self.transformer.velocity_at(x, sigma * TIMESTEPS, conditioning)


def draw_sigmas(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels: evenly spread ones, shifted as the sampler shifts them, so that each of its steps is as trained."""
    u = torch.rand(count, generator=generator)
    return shift * u / (1 + (shift - 1) * u)


def build(config: recipe.Recipe) -> Student:
    """Build tokenizers, encoders and transformer, all but the first random."""
    wording = random.Random(config.seed)
    concepts = load_concepts()
    scenes = draw_scenes(config.seed, config.text.captions, concepts)
    captions = [caption(scene, wording, concepts) for scene in scenes]
    torch.manual_seed(config.seed)
    transformer = Transformer(config.transformer)
    for layer in (*transformer.double_stream_blocks, *transformer.single_stream_blocks):
        nn.init.zeros_(layer["block"].adaLN_modulation[1].weight)  # each block starts as the identity (DiT)
        nn.init.zeros_(layer["block"].adaLN_modulation[1].bias)
    nn.init.zeros_(transformer.final_layer.linear.weight)
    nn.init.zeros_(transformer.final_layer.linear.bias)
    return Student(transformer, encoders.build(config, captions))


def train(config: recipe.Recipe, folder: Path, autoencoder: Path, device: torch.device) -> None:
    """Train, or go on training, and write `folder/full`: a checkpoint that the product loads."""
    settings = config.pretrain
    student = build(config).to(device)
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    rates = functools.partial(rise_and_fall, warm_up=settings.warm_up, steps=settings.steps, fall=settings.fall)
    optimiser = Optimisers(student, rates, settings.adamw_rate)
    dice = Dice(config.seed)
    parts = {"student": student, "average": average, "optimiser": optimiser, "dice": dice}
    stage = Stage(folder, config.run, parts)
    if stage.done:
        return
    vae = load_autoencoder(Checkpoint(autoencoder), device, torch.float32)
    source = latents_of(config, vae, folder, device)
    for step in stage.steps(settings.steps):
        batch = source.batch(dice, settings.batch, step)
        captions = ["" if dice.uniform() < settings.caption_dropout else text for text in batch.captions]
        noise = torch.randn(batch.latent.shape, generator=dice.generator).to(device)
        sigma = draw_sigmas(len(captions), RECIPES[Variant.FULL].shift, dice.generator).to(device)
        level = sigma[:, None, None, None]
        mixed = (1 - level) * batch.latent + level * noise
        with balance_losses(student) as balance, quick(device):
            velocity = student(mixed, sigma, captions, batch.grid)
        flow = F.mse_loss(velocity.float(), noise - batch.latent)
        loss = flow + settings.balance * torch.stack(balance).mean()
        optimiser.step(loss)
        average.update_parameters(student)
        stage.report(flow=flow, balance=torch.stack(balance).mean())
    folders.save_variant(average.module.transformer, Variant.FULL, folder / "full")
    encoders.save(average.module.text, folder / "full")
    stage.finish()


def latents_of(config: recipe.Recipe, vae: Autoencoder, folder: Path, device: torch.device) -> Latents:
    """Open the source of batches, whose pool is kept in pretraining's `folder` on a CPU."""
    pool = config.pretrain.pool if device.type == "cpu" else None
    token_px = vae.factor * config.transformer.patch_size
    concepts = load_concepts()
    return Latents(vae, Sprites.load(device), concepts, token_px, config.pretrain.square, pool, folder / "latents")


def main() -> None:
    """Run the stage."""
    given = arguments(__doc__).parse_args()
    train(recipe.load(given.config), given.runs / "pretrain", given.runs / "autoencoder", given.device)


if __name__ == "__main__":
    main()
