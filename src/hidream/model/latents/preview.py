"""A small image of a latent, without the autoencoder: a linear map from a cell's channels to one colour.

The map is fitted to the autoencoder at hand, so any checkpoint has previews without extra files. The encoder encodes a
few synthetic images of gradients and shapes, and least squares finds how each cell's mean colour follows from its
channels. Nothing is decoded, and the regression sees latents of images. Random latents do not work: with a map that is
fitted to what they decode to, previews of nano's images are 6 dB worse.

Knows neither steps nor requests; it renders any estimate x0. Shapes: C latent channels, h × w latent cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.model.latents.autoencoder import Autoencoder
from hidream.model.latents.shape import to_pixels

IMAGES, SHAPES = 8, 6
"""How many images the map is fitted to, and shapes on each. With 4 images nano's previews lose 1 dB; with 16, or
with 3 or 10 shapes, they are the same within the 0.7 dB by which other seeds differ."""
CELLS = 16
"""Side of such an image in latent cells; at 8, where nearly half of the cells lie at borders, previews lose 0.5 dB."""
RADIUS_MIN, RADIUS_MAX = 0.05, 0.3
"""Of a shape, in sides of the image: from about one cell to a third of the image."""
RIDGE = 1e-3
"""Variance added to each channel, of which a latent has about 1: keeps directions that the images hardly use small.
Between 0 and 1e-2 nano's previews differ by less than 0.1 dB; 1e-1 costs 0.8."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The map from a cell's channels to red, green and blue in −1 to 1: weight [C, 3], bias [3]; float32 on the CPU."""

    weight: Tensor
    bias: Tensor

    def render(self, x0: Tensor) -> np.ndarray:
        """Turn an estimate of the transformer's latent x0 [1, C, h, w] into uint8 pixels [h, w, 3], one for each cell.

        So 1024² of the published model are 128 × 128 pixels. Waits for the device of x0: not for within a step.
        """
        image = torch.einsum("chw,cr->rhw", x0[0].float().cpu(), self.weight) + self.bias[:, None, None]
        return to_pixels(image).numpy()


@torch.no_grad()
def fit_preview(vae: Autoencoder) -> Preview:
    """Fit the map to an autoencoder, which must be on the device where it computes (`phases.Phases.autoencoding`).

    Takes 0.5 s of a CPU for nano's, 6 s for FLUX's. Equal weights give equal maps, and no random generator but its own
    is touched. On final latents of eight of nano's images the preview is 24.4 dB from the mean colours of what they
    decode to (R² 0.94; a map fitted to these very images reaches 25.5, to the other seven 24.3), on the estimates of
    the first of 28 steps 20.2 dB (R² 0.88).
    """
    where = next(vae.module.parameters()).device
    images = synthetic_images(CELLS * vae.factor)
    latents = torch.cat([vae.encode(image[None].to(where)).cpu() for image in images])
    return _least_squares(_cells(latents), _cells(F.avg_pool2d(images, vae.factor)))


def synthetic_images(side_px: int) -> Tensor:
    """Make the images [IMAGES, 3, side, side] in −1 to 1: gradients of random colours, discs and squares of others.

    So there are flat and shaded areas, edges and corners, in colours from the whole cube.
    """
    generator = torch.Generator().manual_seed(0)
    images = _gradients(side_px, generator)
    y, x = _plane(side_px)
    for i in range(SHAPES):
        centre_y, centre_x, share = torch.rand(3, IMAGES, 1, 1, 1, generator=generator)
        radius = RADIUS_MIN + (RADIUS_MAX - RADIUS_MIN) * share
        dy, dx = y - centre_y, x - centre_x
        inside = dy.hypot(dx) < radius if i % 2 else torch.maximum(dy.abs(), dx.abs()) < radius
        images = torch.where(inside, _gradients(side_px, generator), images)
    return images


def _gradients(side_px: int, generator: torch.Generator) -> Tensor:
    """Shade each image from one colour to another, in any direction."""
    first, second = torch.rand(2, IMAGES, 3, 1, 1, generator=generator) * 2 - 1
    angle = torch.rand(IMAGES, 1, 1, 1, generator=generator) * 2 * math.pi
    y, x = _plane(side_px)
    share = ((y - 0.5) * angle.sin() + (x - 0.5) * angle.cos()) / math.sqrt(2) + 0.5
    return first + (second - first) * share


def _plane(side_px: int) -> tuple[Tensor, Tensor]:
    """Coordinates of all pixels, [side, side] each, 0 to 1."""
    axis = torch.linspace(0, 1, side_px)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return y, x


def _cells(x: Tensor) -> Tensor:
    """[B, C, h, w] to [B·h·w, C], in float64, in which the sums of least squares are exact enough."""
    return x.movedim(1, -1).flatten(0, -2).double()


def _least_squares(channels: Tensor, colours: Tensor) -> Preview:
    """Solve (XᵀX + n·RIDGE)·weight = XᵀY for centred X [n, C] and Y [n, 3]."""
    mean, mean_colour = channels.mean(0), colours.mean(0)
    x, y = channels - mean, colours - mean_colour
    ridge = len(x) * RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
    return Preview(weight.float(), (mean_colour - mean @ weight).float())
