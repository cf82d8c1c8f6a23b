"""Stage 3: Full, by flow matching. The transformer and the four text encoders learn together.

For a latent x0, noise ε and a level σ the transformer sees (1 − σ)·x0 + σ·ε and should answer ε − x0. One caption in
ten is emptied, for classifier-free guidance. What is kept is the moving average of the weights.

    python training/pretrain.py [--runs FOLDER]
"""

from __future__ import annotations

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
from hidream.model.vae import load_autoencoder
from hidream.model.weights import Checkpoint
from hidream.types import Variant
from latents import Latents, draw_scenes
from stage import Dice, Stage, arguments


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
    optimiser = torch.optim.AdamW(
        student.parameters(), settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, settings.warm_up, settings.steps))
    dice = Dice(config.seed)
    parts = {"student": student, "average": average, "optimiser": optimiser, "schedule": schedule, "dice": dice}
    stage = Stage(folder, config.run, parts)
    if stage.done:
        return
    vae = load_autoencoder(Checkpoint(autoencoder), device, torch.float32)
    cached = settings.cached_pictures if device.type == "cpu" else 0
    token_px = vae.factor * config.transformer.patch_size
    source = Latents(vae, Sprites.load(device), load_concepts(), token_px, cached, folder / "latents.pt")
    for _ in stage.steps(settings.steps):
        batch = source.batch(dice, settings.batch, settings.square)
        captions = ["" if dice.uniform() < settings.caption_dropout else text for text in batch.captions]
        noise = torch.randn(batch.latent.shape, generator=dice.generator).to(device)
        sigma = draw_sigmas(len(captions), RECIPES[Variant.FULL].shift, dice.generator).to(device)
        level = sigma[:, None, None, None]
        mixed = (1 - level) * batch.latent + level * noise
        with balance_losses(student) as balance, torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
            velocity = student(mixed, sigma, captions, batch.grid)
        flow = F.mse_loss(velocity.float(), noise - batch.latent)
        loss = flow + settings.balance * torch.stack(balance).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(student)
        stage.report(flow=flow, balance=torch.stack(balance).mean())
    folders.save_variant(average.module.transformer, Variant.FULL, folder / "full")
    encoders.save(average.module.text, folder / "full")
    stage.finish()


def rate(step: int, warm_up: int, steps: int) -> float:
    """Share of the learning rate: up in a line, then down in a line to nothing."""
    return min((step + 1) / warm_up, max(0.0, 1 - (step - warm_up) / max(1, steps - warm_up)))


def main() -> None:
    """Run the stage."""
    given = arguments(__doc__).parse_args()
    train(recipe.load(given.config), given.runs / "pretrain", given.runs / "autoencoder", given.device)


if __name__ == "__main__":
    main()
