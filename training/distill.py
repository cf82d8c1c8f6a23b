"""Stages 5 and 6: Dev and Fast, distilled from Full, so that neither guidance nor 50 steps are needed.

The student answers what the teacher answers with guidance (Meng et al., arXiv 2210.03142), at the noise levels of its
own schedule. Distribution matching with an adversarial term (DMD2, Yin et al., arXiv 2405.14867), which HiDream-I1's
report has behind it, made nano worse (docs/LOG.md): over 16 and more steps that noise their image afresh there is
little left to gain, and it drew in colours too strong for the judge.

    python training/distill.py dev [--runs FOLDER]
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

import folders
import pretrain
import recipe
from hidream.model.checkpoint.checkpoint import Checkpoint, load_transformer
from hidream.model.network.config import TIMESTEPS
from hidream.model.network.transformer import Transformer
from hidream.model.sampling import sampler
from hidream.model.text.text_encoders import TextEncoders, load_text_encoders
from hidream.types import SAMPLING_PRESETS, Variant
from latents import Batch, latents_of
from muon import Optimisers, rise_and_fall
from stage import Dice, Stage, arguments, compile_blocks, done, quick

WARM_UP = 200


class Distillation:
    """Teacher and student, and the loss of a batch."""

    def __init__(
        self, teacher: Transformer, student: Transformer, text: TextEncoders, config: recipe.Recipe, variant: Variant
    ) -> None:
        self.teacher, self.student, self.text = teacher, student, text
        self.guidance, self.object_weights = config.distill[variant].guidance, config.pretrain.object_weights
        own = SAMPLING_PRESETS[variant]
        self.sigmas = torch.tensor(sampler.schedule(own.sampler, own.steps, own.shift).sigmas[:-1])

    def loss(self, batch: Batch, dice: Dice) -> Tensor:
        """Mean squared error of the student against the guided teacher, each image at one of the student's levels."""
        noise = torch.randn(batch.latent.shape, generator=dice.generator).to(batch.latent.device)
        picked = torch.randint(len(self.sigmas), (len(batch.captions),), generator=dice.generator)
        sigma = self.sigmas[picked].to(batch.latent.device)
        level = sigma[:, None, None, None]
        mixed = (1 - level) * batch.latent + level * noise
        with torch.no_grad():
            embeds = self.text.encode(batch.captions)
        conditioning = self.student.condition(*embeds, batch.grid)
        student = self.student.velocity_at(mixed, sigma * TIMESTEPS, conditioning)
        guided = self._guided(mixed, sigma, batch)
        return pretrain.drawing_loss(student, guided, pretrain.weights_of(batch, self.object_weights))

    @torch.no_grad()
    def _guided(self, mixed: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
        captions = [""] * len(batch.captions) + batch.captions
        conditioning = self.teacher.condition(*self.text.encode(captions), batch.grid)
        both = self.teacher.velocity_at(mixed.repeat(2, 1, 1, 1), sigma.repeat(2) * TIMESTEPS, conditioning)
        negative, positive = both.chunk(2)
        return negative + self.guidance * (positive - negative)


def train(config: recipe.Recipe, variant: Variant, runs: Path, folder: Path, device: torch.device) -> None:
    """Distil, or go on, and write `folder/<variant>`."""
    if done(folder):
        return
    settings = config.distill[variant]
    full = Checkpoint(runs / "pretrain" / "full")
    start = full if variant is Variant.DEV else Checkpoint(runs / "dev" / "dev")
    teacher, student = (_separated(load_transformer(c, device, torch.float32)) for c in (full, start))
    student.requires_grad_(True)
    text = load_text_encoders(Checkpoint(runs / "text"), device, torch.float32)
    work = Distillation(teacher, student, text, config, variant)
    rates = functools.partial(rise_and_fall, warm_up=WARM_UP, steps=settings.steps)
    every = config.pretrain.muon_every
    optimiser = Optimisers(student, rates, settings.adamw_rate, settings.muon_rate, pretrain.ENDS, every)
    dice = Dice(config.seed)
    stage = Stage(folder, config.run, {"student": student, "optimiser": optimiser, "dice": dice})
    if config.run.compiled:
        compile_blocks(teacher, student)
    source = latents_of(config, runs, device)
    for step in stage.steps(settings.steps):
        batch = source.batch(dice, settings.batch, config.pretrain.steps + step)
        with quick(device):
            loss = work.loss(batch, dice)
        optimiser.step(loss)
        stage.report(loss=loss)
    folders.save_variant(student, variant, folder / variant)
    stage.finish()


def _separated(transformer: Transformer) -> Transformer:
    """Give every parameter storage of its own again: fused ones are views, which gradients do not reach."""
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
