"""What a request brings to draw upon: an image to start from, and a mask of what may change.

Both come cut and scaled (`images/prepared`) to each size that the drawing needs: the model's grids, and the finished
image's size, so that what a mask protects comes back to the last pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.images.prepared import Prepared, prepare
from hidream.types import ImageRequest, Size

FEATHER_PX = 8
"""Width of the seam, within the mask, along which what is new blends into what was there."""
WHITE = 1.0
"""Of values in −1 to 1."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The image at one size: [3, H, W] in −1 to 1, on white where it was transparent.

    `mask` [1, H, W] is where it may change, None for everywhere; `alpha` [1, H, W] in 0 to 1 is how far it covers what
    is drawn beneath it, None for all of it.
    """

    picture: Tensor
    mask: Tensor | None
    alpha: Tensor | None

    def keep(self, drawn: Tensor) -> Tensor:
        """Lay the image back over `drawn` [3, H, W], of its own size, wherever the mask says that it stays."""
        if self.mask is None:
            return drawn
        share, picture = _feathered(self.mask.to(drawn)), self.picture.to(drawn)
        if self.alpha is not None:  # what is drawn takes the place of the white, or a seam of white would be left
            picture = picture + (1 - self.alpha.to(drawn)) * (drawn - WHITE)
        return torch.where(share > 0, picture.lerp(drawn, share), picture)


@dataclass(frozen=True, slots=True)
class Canvas:
    """The image at every size that is needed of it, and what its user should know of the files."""

    layers: Mapping[Size, Layer]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, prepared: Prepared) -> Canvas:
        """Take over what was prepared, without a copy."""
        layers = {
            size: Layer(torch.from_numpy(each.picture), _tensor(each.mask), _tensor(each.alpha))
            for size, each in prepared.planes.items()
        }
        return cls(layers, prepared.warnings)

    @property
    def nbytes(self) -> int:
        """Bytes that all layers hold."""
        tensors = (tensor for each in self.layers.values() for tensor in (each.picture, each.mask, each.alpha))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def at(self, size: Size) -> Layer:
        """Return the image at a size that it was opened for."""
        return self.layers[size]


def open_canvas(request: ImageRequest, sizes: Iterable[Size] = ()) -> Canvas | None:
    """Read the request's files here, for its own size and others. Raises InvalidInput when they cannot be used.

    For files that this process's user trusts; a stranger's are prepared elsewhere (`images/decoders`).
    """
    if request.image is None:
        return None
    return Canvas.of(prepare({request.size, *sizes}, request.image, request.mask))


def _tensor(values: np.ndarray | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values)


def cells(mask: Tensor, rows: int, columns: int) -> Tensor:
    """Mask [1, H, W] to the latent's cells [1, 1, rows, columns]: 1 for each that the mask touches."""
    return F.adaptive_max_pool2d(mask[None].float(), (rows, columns))


def _feathered(mask: Tensor) -> Tensor:
    """Shares of the new image [1, H, W]: 0 outside the mask, rising to 1 within FEATHER_PX of its edge."""
    blurred = F.avg_pool2d(F.pad(mask[None], (FEATHER_PX,) * 4, mode="replicate"), 2 * FEATHER_PX + 1, stride=1)[0]
    return (2 * blurred - 1).clamp(0, 1) * mask
