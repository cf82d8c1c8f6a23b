"""Stage 3: Full, by flow matching.

For a latent x0, noise ε and a level σ the transformer sees (1 − σ)·x0 + σ·ε and should answer ε − x0. One caption in
ten is emptied, for classifier-free guidance. In the middle of the blocks a linear reader must be able to tell what each
image token shows: a task of its own, because in the flow's loss the objects' names hardly count at first (the idea of
REPA, Yu et al., arXiv 2410.06940, with known answers in the place of another model's features). What is kept is the
moving average of the weights.

    python training/pretrain.py [--runs FOLDER]
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import folders
import recipe
from compose import Sprites
from concepts import Concepts, load_concepts
from features import image_tokens
from hidream.model.config import RECIPES, TIMESTEPS
from hidream.model.moe import balance_losses
from hidream.model.text import load_text_encoders
from hidream.model.transformer import Transformer
from hidream.model.vae import Autoencoder, load_autoencoder
from hidream.model.weights import Checkpoint
from hidream.types import Variant
from latents import Batch, Latents
from muon import Optimisers, rise_and_fall
from stage import Dice, Stage, arguments, compile_blocks, quick

ENDS = ("x_embedder", "embedder", "caption_projection", "adaLN", "gate", "final_layer", "shown", "style")
"""Parts of the names of what AdamW trains, beside the vectors; the matrices within the blocks are Muon's."""
START = "start"
"""Name of a folder beside pretraining's checkpoint: weights to begin with, if there are any (`handover.py`)."""


class Reader(nn.Module):
    """Reads off each image token what it shows, an object or a background, and in which style the picture is."""

    def __init__(self, dim: int, concepts: Concepts) -> None:
        super().__init__()
        self.shown = nn.Linear(dim, len(concepts.objects) + len(concepts.backgrounds))
        self.style = nn.Linear(dim, len(concepts.styles))

    def forward(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of both readings of image tokens [B, N, D]."""
        shown, style = self.shown(tokens).float(), self.style(tokens).float()
        styles = batch.style[:, None].expand_as(batch.shown)
        return F.cross_entropy(shown.mT, batch.shown) + F.cross_entropy(style.mT, styles)


def draw_sigmas(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels: evenly spread ones, shifted as the sampler shifts them, so that each of its steps is as trained."""
    u = torch.rand(count, generator=generator)
    return shift * u / (1 + (shift - 1) * u)


def build(config: recipe.Recipe, start: Path | None = None) -> Transformer:
    """Build the transformer as it was at `start`, or random, with blocks that change nothing yet and an answer of zero.

    The latter as in DiT (Peebles and Xie, arXiv 2212.09748).
    """
    torch.manual_seed(config.seed)
    transformer = Transformer(config.transformer)
    if start and start.exists():
        transformer.load_state_dict(load_file(start / "transformer" / "diffusion_pytorch_model.safetensors"))
        return transformer
    for layer in (*(block.adaLN_modulation[1] for block in transformer.blocks), transformer.final_layer.linear):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def train(config: recipe.Recipe, folder: Path, autoencoder: Path, text: Path, device: torch.device) -> None:
    """Train, or go on training, and write `folder/full`: the transformer as the product loads it."""
    settings, concepts = config.pretrain, load_concepts()
    transformer, reader = build(config, folder / START).to(device), Reader(config.transformer.dim, concepts).to(device)
    average = AveragedModel(transformer, multi_avg_fn=functools.partial(moving_average, settings.ema))
    rates = functools.partial(rise_and_fall, warm_up=settings.warm_up, steps=settings.steps, fall=settings.fall)
    whole = nn.ModuleList((transformer, reader))
    optimiser = Optimisers(whole, rates, settings.adamw_rate, settings.muon_rate, ENDS, settings.muon_every)
    dice = Dice(config.seed)
    parts = {"transformer": transformer, "average": average, "reader": reader, "optimiser": optimiser, "dice": dice}
    stage = Stage(folder, config.run, parts)
    if stage.done:
        return
    if config.run.compiled:
        compile_blocks(transformer)
    encoders = load_text_encoders(Checkpoint(text), device, torch.float32)
    source = latents_of(config, load_autoencoder(Checkpoint(autoencoder), device, torch.float32), folder, device)
    for step in stage.steps(settings.steps):
        batch = source.batch(dice, settings.batch, step)
        captions = ["" if dice.uniform() < settings.caption_dropout else said for said in batch.captions]
        noise = torch.randn(batch.latent.shape, generator=dice.generator).to(device)
        sigma = draw_sigmas(len(captions), RECIPES[Variant.FULL].shift, dice.generator).to(device)
        level = sigma[:, None, None, None]
        mixed = (1 - level) * batch.latent + level * noise
        watched = image_tokens(transformer, *batch.shown.shape)
        with balance_losses(transformer) as balance, watched as tokens, quick(device):
            with torch.no_grad():
                embeds = encoders.encode(captions)
            conditioning = transformer.condition(*embeds, batch.grid)
            velocity = transformer.velocity_at(mixed, sigma * TIMESTEPS, conditioning)
            reading = reader(tokens[settings.reading_block], batch)
        losses = {"flow": F.mse_loss(velocity.float(), noise - batch.latent), "reading": reading}
        losses["balance"] = torch.stack(balance).mean()
        optimiser.step(losses["flow"] + settings.reading * reading + settings.balance * losses["balance"])
        average.update_parameters(transformer)
        stage.report(**losses)
    folders.save_variant(average.module, Variant.FULL, folder / "full")
    stage.finish()


def moving_average(decay: float, averages: list[Tensor], currents: list[Tensor], count: Tensor) -> None:
    """Move the averages towards the current weights; faster at first, so that the first ones are soon forgotten."""
    torch._foreach_lerp_(averages, currents, 1 - min(decay, (1 + int(count)) / (10 + int(count))))


def latents_of(config: recipe.Recipe, vae: Autoencoder, folder: Path, device: torch.device) -> Latents:
    """Open the source of batches, whose pool is kept in pretraining's `folder` on a CPU."""
    pool = config.pretrain.pool if device.type == "cpu" else None
    token_px = vae.factor * config.transformer.patch_size
    concepts = load_concepts()
    return Latents(vae, Sprites.load(device), concepts, token_px, config.pretrain.square, pool, folder / "latents")


def main() -> None:
    """Run the stage."""
    given = arguments(__doc__).parse_args()
    runs = given.runs
    train(recipe.load(given.config), runs / "pretrain", runs / "autoencoder", runs / "text", given.device)


if __name__ == "__main__":
    main()
