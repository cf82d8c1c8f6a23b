"""A latent to start from in place of an init image, and where it may change: what programs pass on that keep latents.

Shapes: C latent channels, h × w latent cells. There are no pixels, so that none are put back after decoding: what is
outside the mask is as the autoencoder decodes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from hidream.model.latents.init_image import cells


@dataclass(frozen=True, slots=True)
class InitLatent:
    """The transformer's latent [1, C, h, w], float32; `mask` [1, H, W] of any size is where it may change, or None."""

    latent: Tensor
    mask: Tensor | None = None
    warnings: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.latent.nbytes + (0 if self.mask is None else self.mask.nbytes)

    def at(self, rows: int, columns: int) -> Tensor:
        """Return the latent on a grid of cells [1, C, rows, columns], smoothly scaled if it has another."""
        if self.latent.shape[-2:] == (rows, columns):
            return self.latent
        return F.interpolate(self.latent, (rows, columns), mode="bicubic")

    def changes(self, rows: int, columns: int) -> Tensor | None:
        """Return the cells that may change [1, 1, rows, columns]: those that the mask touches; None for all."""
        return None if self.mask is None else cells(self.mask, rows, columns)
