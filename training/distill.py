"""Stages 4 and 5: Dev and Fast, distilled from Full, so that neither guidance nor 50 steps are needed.

First *regression*: the student answers what the teacher answers with guidance (Meng et al., arXiv 2210.03142), at the
noise levels of its own schedule. Then *distribution matching* (DMD2, Yin et al., arXiv 2405.14867), as HiDream-I1's
report has it: the student predicts a picture from one of its levels; where the guided teacher and a critic, who knows
the student's pictures, would move that picture differently, it follows the teacher. A discriminator on the teacher's
features adds an adversarial term against real pictures. A step's input is noised data rather than a simulated
trajectory: over 16 and more steps that re-noise completely, the two hardly differ.

    python training/distill.py dev [--runs FOLDER]
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import folders
import pretrain
import recipe
from features import image_tokens
from hidream.model import sampler
from hidream.model.config import RECIPES, TIMESTEPS
from hidream.model.packed import Conditioning
from hidream.model.text import TextEncoders, load_text_encoders
from hidream.model.transformer import Transformer
from hidream.model.weights import Checkpoint, load_transformer
from hidream.types import Variant
from latents import Batch, latents_of
from muon import Optimisers, rise_and_fall
from stage import Dice, Stage, arguments, compile_blocks, done, quick

WARM_UP = 200
SPREAD_SHIFT = 2.0
"""How the levels at which teacher and critic compare are moved towards noise, where layout is decided."""


class Discriminator(nn.Module):
    """Tells real from drawn by the teacher's image tokens after every block, one small head for each."""

    def __init__(self, dim: int, blocks: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 1)) for _ in range(blocks)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features, each [B, N, D], to one logit per head and token."""
        return torch.cat([head(feature).flatten(1) for head, feature in zip(self.heads, features, strict=True)], dim=1)


class Distillation:
    """Teacher, student, critic and discriminator, and one step of each kind."""

    def __init__(
        self, teacher: Transformer, student: Transformer, text: TextEncoders, config: recipe.Recipe, variant: Variant
    ) -> None:
        self.teacher, self.student, self.text = teacher, student, text
        self.settings, self.object_weights = config.distill[variant], config.pretrain.object_weights
        self.critic = copy.deepcopy(teacher).requires_grad_(True)
        blocks = len(teacher.config.llama_layers)
        self.discriminator = Discriminator(teacher.config.dim, blocks).to(next(teacher.parameters()).device)
        own = RECIPES[variant]
        self.sigmas = sampler.schedule(own.sampler, own.steps, own.shift).sigmas[:-1]

    def regression(self, batch: Batch, dice: Dice) -> Tensor:
        """Loss of the student against the guided teacher, at one of the student's levels."""
        mixed, sigma = noised(batch.latent, self._own_levels(len(batch.captions), dice), dice)
        student, guided = self._student(mixed, sigma, batch), self._guided(mixed, sigma, batch)
        return pretrain.drawing_loss(student, guided, pretrain.weights_of(batch, self.object_weights))

    def matching(self, batch: Batch, dice: Dice) -> tuple[Tensor, Tensor]:
        """Losses of the student: distribution matching, and the discriminator's verdict."""
        drawn = self._drawn(batch, dice)
        mixed, sigma = noised(drawn.detach(), spread_levels(len(drawn), dice), dice)
        with torch.no_grad():
            level = sigma[:, None, None, None]
            teacher = mixed - level * self._guided(mixed, sigma, batch)
            fake = self.critic.velocity_at(mixed, sigma * TIMESTEPS, self._condition(self.critic, batch))
            critic = mixed - level * fake
            scale = (drawn - teacher).abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-4)
            target = (drawn - (critic - teacher) / scale).float()
        matching = 0.5 * F.mse_loss(drawn.float(), target)
        verdict = F.softplus(-self.discriminator(self._features(drawn, batch, dice))).mean()
        return matching, verdict

    def criticism(self, batch: Batch, dice: Dice) -> tuple[Tensor, Tensor]:
        """Losses of the critic, flow matching on the student's pictures, and of the discriminator."""
        with torch.no_grad():
            drawn = self._drawn(batch, dice)
        noise = torch.randn(drawn.shape, generator=dice.generator).to(drawn.device)
        sigma = spread_levels(len(drawn), dice).to(drawn.device)
        level = sigma[:, None, None, None]
        conditioning = self._condition(self.critic, batch)
        velocity = self.critic.velocity_at((1 - level) * drawn + level * noise, sigma * TIMESTEPS, conditioning)
        with torch.no_grad():
            false, true = self._features(drawn, batch, dice), self._features(batch.latent, batch, dice)
        verdict = F.softplus(self.discriminator(false)).mean() + F.softplus(-self.discriminator(true)).mean()
        return F.mse_loss(velocity.float(), noise - drawn), verdict

    def _drawn(self, batch: Batch, dice: Dice) -> Tensor:
        """Pictures that the student predicts from its own levels."""
        mixed, sigma = noised(batch.latent, self._own_levels(len(batch.captions), dice), dice)
        return mixed - sigma[:, None, None, None] * self._student(mixed, sigma, batch)

    def _student(self, mixed: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        return self.student.velocity_at(mixed, sigma * TIMESTEPS, self._condition(self.student, batch))

    @torch.no_grad()
    def _guided(self, mixed: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        captions = [""] * len(batch.captions) + batch.captions
        conditioning = self.teacher.condition(*self.text.encode(captions), batch.grid)
        both = self.teacher.velocity_at(mixed.repeat(2, 1, 1, 1), sigma.repeat(2) * TIMESTEPS, conditioning)
        negative, positive = both.chunk(2)
        return negative + self.settings.guidance * (positive - negative)

    def _condition(self, transformer: Transformer, batch: Batch) -> Conditioning:
        with torch.no_grad():
            embeds = self.text.encode(batch.captions)
        return transformer.condition(*embeds, batch.grid)

    def _features(self, latent: Tensor, batch: Batch, dice: Dice) -> list[Tensor]:
        """The teacher's image tokens after every block, on the noised latent."""
        mixed, sigma = noised(latent, spread_levels(len(latent), dice), dice)
        with image_tokens(self.teacher, len(latent), batch.grid.rows * batch.grid.columns) as found:
            self.teacher.velocity_at(mixed, sigma * TIMESTEPS, self._condition(self.teacher, batch))
        return found

    def _own_levels(self, count: int, dice: Dice) -> Tensor:
        return torch.tensor(self.sigmas)[torch.randint(len(self.sigmas), (count,), generator=dice.generator)]


def noised(latent: Tensor, sigma: Tensor, dice: Dice) -> tuple[Tensor, Tensor]:
    """Bring latents [B, C, h, w] to levels sigma [B]; returns both on the latents' device."""
    sigma = sigma.to(latent.device)
    level = sigma[:, None, None, None]
    noise = torch.randn(latent.shape, generator=dice.generator).to(latent.device)
    return (1 - level) * latent + level * noise, sigma


def spread_levels(count: int, dice: Dice) -> Tensor:
    """Levels [B] from 0.02 to 0.98, shifted."""
    u = torch.rand(count, generator=dice.generator)
    return (SPREAD_SHIFT * u / (1 + (SPREAD_SHIFT - 1) * u)).clamp(0.02, 0.98)


def train(config: recipe.Recipe, variant: Variant, runs: Path, folder: Path, device: torch.device) -> None:
    """Distil, or go on, and write `folder/<variant>`."""
    if done(folder):
        return
    settings = config.distill[variant]
    full = Checkpoint(runs / "pretrain" / "full")
    start = full if variant is Variant.DEV else Checkpoint(runs / "dev" / "dev")
    teacher, student = (_unpacked(load_transformer(c, device, torch.float32)) for c in (full, start))
    student.requires_grad_(True)
    text = load_text_encoders(Checkpoint(runs / "text"), device, torch.float32)
    work = Distillation(teacher, student, text, config, variant)
    total = settings.regression_steps + settings.matching_steps
    rates = functools.partial(rise_and_fall, warm_up=WARM_UP, steps=total)
    own = Optimisers(student, rates, settings.adamw_rate, settings.muon_rate, pretrain.ENDS, config.pretrain.muon_every)
    critics = nn.ModuleList((work.critic, work.discriminator))
    against = Optimisers(critics, lambda step: 1.0, settings.adamw_rate)
    dice = Dice(config.seed)
    parts = {"student": student, "critic": work.critic, "discriminator": work.discriminator}
    stage = Stage(folder, config.run, parts | {"own": own, "against": against, "dice": dice})
    if config.run.compiled:
        compile_blocks(teacher, student, work.critic)
    source = latents_of(config, runs, device)
    for step in stage.steps(total):
        batch = functools.partial(source.batch, dice, settings.batch, config.pretrain.steps + step)
        with quick(device):
            if step < settings.regression_steps:
                loss = work.regression(batch(), dice)
                losses = {"regression": loss}
            else:
                for _ in range(settings.critic_steps):
                    critic, discriminator = work.criticism(batch(), dice)
                    against.step(critic + discriminator)
                matching, verdict = work.matching(batch(), dice)
                loss = matching + settings.adversarial * verdict
                losses = {"matching": matching, "verdict": verdict, "critic": critic, "discriminator": discriminator}
        own.step(loss)
        stage.report(**losses)
    folders.save_variant(student, variant, folder / variant)
    stage.finish()


def _unpacked(transformer: Transformer) -> Transformer:
    """Give every parameter storage of its own again: packed ones are views, which gradients do not reach."""
    plain = Transformer(transformer.config).to(next(transformer.parameters()).device)
    plain.load_state_dict(transformer.state_dict())
    return plain.eval().requires_grad_(False)


def main() -> None:
    """Run the stage of one variant."""
    parser = arguments(__doc__)
    parser.add_argument("variant", type=Variant, choices=[Variant.DEV, Variant.FAST])
    given = parser.parse_args()
    train(recipe.load(given.config), given.variant, given.runs, given.runs / given.variant, given.device)


if __name__ == "__main__":
    main()
