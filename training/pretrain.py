"""Stage 4: Full, by flow matching.

For a latent x0, noise ε and a level σ the transformer sees (1 − σ)·x0 + σ·ε and should answer ε − x0. One caption in
ten is emptied, for classifier-free guidance. An object's tokens weigh more than the ground's, most in the sizes that
are rare: captions tell the size, so that this changes how soon it is learned and not what. In the middle of the blocks
a linear reader must be able to tell what each image token shows: a task of its own, because in the flow's loss the
objects' names hardly count at first (the idea of REPA, Yu et al., arXiv 2410.06940, with known answers in the place of
another model's features). What is kept is the moving average of the weights.

    python training/pretrain.py [--runs FOLDER]
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import folders
import recipe
from concepts import load_concepts
from features import image_tokens
from hidream.model.checkpoint.checkpoint import Checkpoint
from hidream.model.network.config import TIMESTEPS
from hidream.model.network.moe import balance_losses
from hidream.model.network.transformer import Transformer
from hidream.model.text.text_encoders import load_text_encoders
from hidream.types import SAMPLING_PRESETS, Variant
from latents import Batch, latents_of
from muon import Optimisers, rise_and_fall
from placement import PARTS, SIZES, part_of
from questions import TokenReader
from scenes import Extent
from stage import Dice, Stage, arguments, compile_blocks, done, quick

ENDS = ("x_embedder", "embedder", "caption_projection", "adaLN", "gate", "final_layer", "shown", "part", "style")
"""Parts of the names of what AdamW trains, beside the vectors; the matrices within the blocks are Muon's."""
START = "start"
"""Name of a folder beside pretraining's checkpoint: weights to begin with, if there are any (`shipped.py`)."""


def draw_sigmas(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels, one from each of `count` equal ranges; shifted as the sampler's, so that its steps are known."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return shift * u / (1 + (shift - 1) * u)


def weights_of(batch: Batch, object_weights: Mapping[Extent, float]) -> Tensor:
    """Say what each latent cell weighs in a loss, [B, 1, h, w], 1 on average; a ground weighs 1 of `object_weights`."""
    table = torch.ones(PARTS)
    for extent, size in SIZES.items():
        table[part_of(size, 0, 0) : part_of(size, 0, 0) + size**2] = object_weights[extent]
    tokens = table.to(batch.part.device)[batch.part].view(-1, 1, *batch.grid)
    return F.interpolate(tokens / tokens.mean(), batch.latent.shape[-2:], mode="nearest")


def drawing_loss(velocity: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean of the squared errors of velocities [B, C, h, w], in fp32, with `weights` as `weights_of` gives them."""
    return (F.mse_loss(velocity.float(), target.float(), reduction="none") * weights).mean()


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


def train(config: recipe.Recipe, runs: Path, folder: Path, device: torch.device) -> None:
    """Train, or go on training, and write `folder/full`: the transformer as the product loads it."""
    if done(folder):
        return
    settings, concepts = config.pretrain, load_concepts()
    transformer = build(config, folder / START).to(device)
    reader = TokenReader(config.transformer.dim, concepts).to(device)
    average = AveragedModel(transformer, multi_avg_fn=functools.partial(moving_average, settings.ema))
    rates = functools.partial(rise_and_fall, warm_up=settings.warm_up, steps=settings.steps, fall=settings.fall)
    whole = nn.ModuleList((transformer, reader))
    optimiser = Optimisers(whole, rates, settings.adamw_rate, settings.muon_rate, ENDS, settings.muon_every)
    dice = Dice(config.seed)
    parts = {"transformer": transformer, "average": average, "reader": reader, "optimiser": optimiser, "dice": dice}
    stage = Stage(folder, config.run, parts)
    if config.run.compiled:
        compile_blocks(transformer)
    encoders = load_text_encoders(Checkpoint(runs / "text"), device, torch.float32)
    source = latents_of(config, runs, device)
    for step in stage.steps(settings.steps):
        batch = source.batch(dice, settings.batch, step)
        captions = ["" if dice.uniform() < settings.caption_dropout else said for said in batch.captions]
        noise = torch.randn(batch.latent.shape, generator=dice.generator).to(device)
        sigma = draw_sigmas(len(captions), SAMPLING_PRESETS[Variant.FULL].shift, dice.generator).to(device)
        level = sigma[:, None, None, None]
        mixed = (1 - level) * batch.latent + level * noise
        watched = image_tokens(transformer, *batch.shown.shape)
        with balance_losses(transformer) as balance, watched as tokens, quick(device):
            with torch.no_grad():
                embeds = encoders.encode(captions)
            conditioning = transformer.condition(*embeds, batch.grid)
            velocity = transformer.velocity_at(mixed, sigma * TIMESTEPS, conditioning)
            reading = reader(tokens[settings.reading_block], batch.shown, batch.part, batch.style)
        weights = weights_of(batch, settings.object_weights)
        losses = {"flow": drawing_loss(velocity, noise - batch.latent, weights), "reading": reading}
        losses["balance"] = torch.stack(balance).mean()
        optimiser.step(losses["flow"] + settings.reading * reading + settings.balance * losses["balance"])
        average.update_parameters(transformer)
        stage.report(**losses)
    folders.save_variant(average.module, Variant.FULL, folder / "full")
    stage.finish()


def moving_average(decay: float, averages: list[Tensor], currents: list[Tensor], count: Tensor) -> None:
    """Move the averages towards the current weights; faster at first, so that the first ones are soon forgotten."""
    torch._foreach_lerp_(averages, currents, 1 - min(decay, (1 + int(count)) / (10 + int(count))))


def main() -> None:
    """Run the stage."""
    given = arguments(__doc__).parse_args()
    train(recipe.load(given.config), given.runs, given.runs / "pretrain", given.device)


if __name__ == "__main__":
    main()
