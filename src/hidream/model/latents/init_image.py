"""The init image of a request, and the mask of what may change.

Both arrive cropped and scaled (`images/prepared`) to each size that the request needs: those of the model's grids, and
the size of the finished image, so that the pixels that a mask protects stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hidream.images.prepared import Prepared, prepare
from hidream.request import ImageRequest
from hidream.types import Size

FEATHER_PX = 8
"""Width of the seam, within the mask, along which the generated pixels blend into the init image."""
WHITE = 1.0
"""Of values in −1 to 1."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The image at one size: [3, H, W] in −1 to 1, on white where it was transparent.

    `mask` [1, H, W] is where it may change, None for everywhere; `alpha` [1, H, W] in 0 to 1 is its opacity, None where
    it is opaque.
    """

    image: Tensor
    mask: Tensor | None
    alpha: Tensor | None

    def blend(self, generated: Tensor) -> Tensor:
        """Put the init image back over `generated` [3, H, W], of the same size, wherever the mask protects it."""
        if self.mask is None:
            return generated
        share, image = _feathered(self.mask.to(generated)), self.image.to(generated)
        if self.alpha is not None:  # generated pixels replace the white background, which would leave a white seam
            image = image + (1 - self.alpha.to(generated)) * (generated - WHITE)
        return torch.where(share > 0, image.lerp(generated, share), image)


@dataclass(frozen=True, slots=True)
class InitImage:
    """The image at every size that the request needs, and warnings about its files."""

    layers: Mapping[Size, Layer]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, prepared: Prepared) -> InitImage:
        """Wrap prepared planes, without a copy."""
        layers = {
            size: Layer(torch.from_numpy(each.image), _tensor(each.mask), _tensor(each.alpha))
            for size, each in prepared.planes.items()
        }
        return cls(layers, prepared.warnings)

    @property
    def nbytes(self) -> int:
        """Bytes that all layers hold."""
        tensors = (tensor for each in self.layers.values() for tensor in (each.image, each.mask, each.alpha))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def at(self, size: Size) -> Layer:
        """Return the image at one of its sizes."""
        return self.layers[size]


def open_init_image(request: ImageRequest, sizes: Iterable[Size] = ()) -> InitImage | None:
    """Read the request's files in this process, at its own size and others. Raises InvalidInput on unusable files.

    Only for files that the user of this process trusts; a client's are decoded in another (`images/decoders`).
    """
    if request.image is None:
        return None
    image, mask = request.image, request.mask
    assert isinstance(image, bytes), f"not the name of an upload: {image!r:.100}"
    assert not isinstance(mask, str), f"not the name of an upload: {mask!r:.100}"
    return InitImage.of(prepare({request.size, *sizes}, image, mask))


def _tensor(values: np.ndarray | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values)


def cells(mask: Tensor, rows: int, columns: int) -> Tensor:
    """Turn a mask [1, H, W] into latent cells [1, 1, rows, columns]: 1 for each cell that the mask touches."""
    return F.adaptive_max_pool2d(mask[None].float(), (rows, columns))


def _feathered(mask: Tensor) -> Tensor:
    """Weights of the generated image [1, H, W]: 0 outside the mask, rising to 1 within FEATHER_PX of its edge."""
    blurred = F.avg_pool2d(F.pad(mask[None], (FEATHER_PX,) * 4, mode="replicate"), 2 * FEATHER_PX + 1, stride=1)[0]
    return (2 * blurred - 1).clamp(0, 1) * mask
