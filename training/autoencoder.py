"""Stage 1: the autoencoder. Cut-outs of composed images, small ones first; then its scale, then its folder.

The loss is the mean square of the pixels' differences: absolute differences, which leave drawings sharper, are learned
far more slowly, and come in only at the end. So does noise on the latents, which makes the decoder forgiving. At last
the latents' means are folded into the convolutions around them, and their scale is written down.

    python training/autoencoder.py [--runs FOLDER]
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor

import recipe
from compose import Sprites, compose
from concepts import load_concepts
from hidream.model.latents.shape import Grid
from latents import draw_scenes
from muon import Optimisers, rise_and_fall
from stage import Dice, Stage, arguments, done

CALIBRATION = 256
"""Images by which the channels' spread is measured."""
CUT_OUTS = 4
"""Cut-outs taken from one image, which costs about as much to compose as they cost to learn."""
WARM_UP = 100


def build(config: recipe.Autoencoder) -> AutoencoderDC:
    """Build the autoencoder, random but for what the shortcuts around its latent would compute.

    AutoencoderDC can add means of the last features to the latent, and repeat the latent for the decoder's first. Here
    the convolutions at these places begin as just that: it trains as well, and means can be folded into them.
    """
    levels = len(config.widths)
    module = AutoencoderDC(
        latent_channels=config.latent_channels,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=config.widths,
        decoder_block_out_channels=config.widths,
        encoder_layers_per_block=config.encoder_layers,
        decoder_layers_per_block=config.decoder_layers,
        encoder_qkv_multiscales=[[]] * levels,
        decoder_qkv_multiscales=[[]] * levels,
        decoder_conv_act_fn="silu",  # behind a ReLU 13 of the last 16 channels died, and an axis of colour with them
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
        scaling_factor=1.0,
    )
    repeats = config.widths[-1] // config.latent_channels
    repeat = torch.eye(config.latent_channels).repeat_interleave(repeats, dim=1)  # [latent channels, width]
    with torch.no_grad():
        module.encoder.conv_out.weight[:, :, 1, 1] += repeat / repeats
        module.decoder.conv_in.weight[:, :, 1, 1] += repeat.T
    return module


def reconstruction_loss(ours: Tensor, truth: Tensor, sharpness: float) -> Tensor:
    """Mean square of differences; `sharpness` times the mean absolute ones, of pixels and of steps between pixels."""
    loss = F.mse_loss(ours, truth)
    if sharpness:
        loss = loss + sharpness * F.l1_loss(ours, truth)
        for axis in (-1, -2):
            loss = loss + sharpness * F.l1_loss(ours.diff(dim=axis), truth.diff(dim=axis))
    return loss


def cut_outs(images: Tensor, side: int, dice: Dice) -> Tensor:
    """Cut a square of `side` pixels from a random place of each image [B, 3, H, W]."""
    places = torch.randint(images.shape[-1] - side + 1, (len(images), 2), generator=dice.generator).tolist()
    return torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(images, places, strict=True)])


def phase_of(phases: list[recipe.Phase], step: int) -> recipe.Phase:
    """Find the phase that a step belongs to."""
    for phase in phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    return phases[-1]


def train(config: recipe.Recipe, folder: Path, device: torch.device) -> None:
    """Train, or go on training, and write the finished autoencoder to `folder/vae`."""
    if done(folder):
        return
    torch.manual_seed(config.seed)
    settings = config.autoencoder
    module = build(settings).to(device, memory_format=torch.channels_last)
    total, whole = sum(phase.steps for phase in settings.phases), config.side_px
    square, token_px = Grid(recipe.BEST_SIDE, recipe.BEST_SIDE), whole // recipe.BEST_SIDE
    rates = functools.partial(rise_and_fall, warm_up=WARM_UP, steps=total)
    optimiser = Optimisers(module, rates, settings.adamw_rate, settings.muon_rate, ends=("conv_in", "conv_out"))
    dice = Dice(config.seed)
    stage = Stage(folder, config.run, {"module": module, "optimiser": optimiser, "dice": dice})
    sprites, concepts = Sprites.load(device), load_concepts()
    for step in stage.steps(total):
        phase = phase_of(settings.phases, step)
        count = -(-phase.batch // CUT_OUTS) if phase.side < whole else phase.batch
        images = compose(draw_scenes(dice.seed(), count, concepts), sprites, square, token_px, dice.seed())
        truth = cut_outs(images.repeat(phase.batch // count, 1, 1, 1), phase.side, dice).contiguous(
            memory_format=torch.channels_last
        )
        latent = module.encode(truth, return_dict=False)[0]
        if phase.noise:
            latent = latent + phase.noise * latent.detach().std() * torch.randn_like(latent)
        loss = reconstruction_loss(module.decode(latent, return_dict=False)[0], truth, phase.sharpness)
        optimiser.step(loss)
        stage.report(loss=loss)
    centre(module, compose(draw_scenes(dice.seed(), CALIBRATION, concepts), sprites, square, token_px, dice.seed()))
    save(module, folder / "vae")
    stage.finish()


@torch.no_grad()
def centre(module: AutoencoderDC, images: Tensor) -> None:
    """Give the latents of `images` mean 0 in each channel, and the module the `scaling_factor` for spread 1 over all.

    One scale for all channels: those of colour spread five times as far as those of detail, and matter as much more
    for the image. Made equal, details took most of the transformer's loss (docs/LOG.md).
    What is decoded stays the same but at the borders: there the decoder pads with zeros, which now mean the average.
    """
    latent = torch.cat([module.encode(part, return_dict=False)[0] for part in images.split(8)])
    mean = latent.mean((0, 2, 3))
    back = module.decoder.conv_in
    back.bias.add_((back.weight * mean[:, None, None]).sum((1, 2, 3)))
    module.encoder.conv_out.bias.sub_(mean)
    spread = (latent - mean[:, None, None]).square().mean().sqrt()
    module.register_to_config(scaling_factor=1 / spread.item())


def save(module: AutoencoderDC, folder: Path) -> None:
    """Write the autoencoder in 16 bit, with the keys that stock HiDreamImagePipeline wants in its configuration."""
    module.to("cpu", torch.float16).save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values |= {"block_out_channels": values["encoder_block_out_channels"], "shift_factor": 0.0}
    path.write_text(json.dumps(values, indent=2) + "\n")


def main() -> None:
    """Run the stage."""
    given = arguments(__doc__).parse_args()
    train(recipe.load(given.config), given.runs / "autoencoder", given.device)


if __name__ == "__main__":
    main()
