"""What a request brings to draw upon: an image to start from, and a mask of what may change.

Both are cut and scaled as soon as they are read to each size that the drawing needs: the model's grids, and the
finished image's size, so that what a mask protects comes back to the last pixel. What is kept takes no more memory than
the output, however large the file is. `image_file` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hidream.errors import InvalidInput
from hidream.model.image_file import Decoded, open_image, srgb
from hidream.model.shape import fit, middle
from hidream.types import ImageRequest, Size

FEATHER_PX = 8
"""Width of the seam, within the mask, along which what is new blends into what was there."""
WHITE = 1.0
"""Of values in −1 to 1."""
HALF = 128
"""Of 255: from here on a mask is white, and alpha opaque."""


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

    def at(self, size: Size) -> Layer:
        """Return the image at a size that it was opened for."""
        return self.layers[size]


def open_canvas(request: ImageRequest, sizes: Iterable[Size] = ()) -> Canvas | None:
    """Read the request's files, for its own size and others. Raises InvalidInput when they cannot be used."""
    if request.image is None:
        return None
    image = open_image("image", request.image)
    mask, warnings = _mask_of(image, request.mask)
    colours, passed_over = srgb("image", image)
    layers = {size: _layer(colours, mask, image.alpha, size, request.mask is None) for size in {request.size, *sizes}}
    if any(layer.mask is not None and not layer.mask.any() for layer in layers.values()):
        warnings += ("the mask leaves nothing of the image to change; what may change is white in it, or transparent",)
    return Canvas(layers, image.warnings + passed_over + warnings)


def cells(mask: Tensor, rows: int, columns: int) -> Tensor:
    """Mask [1, H, W] to the latent's cells [1, 1, rows, columns]: 1 for each that the mask touches."""
    return F.adaptive_max_pool2d(mask[None].float(), (rows, columns))


def _mask_of(image: Decoded, data: bytes | None) -> tuple[Image.Image | None, tuple[str, ...]]:
    """Find out where the image may change, 255 in a mask of its size, and what has to be said of that."""
    if data is None:
        return _transparent(image)
    mask = open_image("mask", data)
    if mask.colours.size != image.colours.size:
        given, wanted = mask.colours, image.colours
        raise InvalidInput(
            f"mask is {given.width}*{given.height} pixels and image {wanted.width}*{wanted.height}; "
            "accepted: equal sizes"
        )
    may_change, warnings = _transparent_or_light(mask)
    return may_change, mask.warnings + warnings


def _transparent(image: Decoded) -> tuple[Image.Image | None, tuple[str, ...]]:
    """Take the image's own alpha for its mask, as OpenAI's API does."""
    if image.alpha is None:
        return None, ()
    cure = "to let all of it change as it looks on white, give it without transparency"
    if not any(image.alpha.histogram()[:HALF]):
        return None, ("image is translucent, and nowhere by half: it is laid on white, and all of it may change",)
    said = f"image has transparent parts and comes without a mask: they alone may change, and begin white; {cure}"
    return _below_half(image.alpha), (said,)


def _transparent_or_light(mask: Decoded) -> tuple[Image.Image, tuple[str, ...]]:
    """Read what a mask says by its alpha, where any of it is transparent, or else by its light."""
    light = mask.colours.convert("L").point([0] * HALF + [255] * HALF)
    if mask.alpha is None or not any(mask.alpha.histogram()[:HALF]):
        return light, ()
    transparent = _below_half(mask.alpha)
    opaque_light = Image.composite(Image.new("L", light.size), light, transparent)
    if not any(opaque_light.histogram()[HALF:]):
        return transparent, ()
    said = (
        "mask has transparent parts and light ones: the transparent ones may change, and no others; "
        "to let the light ones change, give it without transparency"
    )
    return transparent, (said,)


def _below_half(alpha: Image.Image) -> Image.Image:
    return alpha.point([255] * HALF + [0] * HALF)


def _layer(colours: Image.Image, mask: Image.Image | None, alpha: Image.Image | None, size: Size, alone: bool) -> Layer:
    """Bring an image to a size; one that comes `alone`, without a mask, is nowhere more than its alpha."""
    picture = _fitted(colours, size)
    if mask is None:
        return Layer(picture, None, None)
    may_change = _fitted(mask, size, 255, 0) >= 0.5
    if alpha is None:
        return Layer(picture, may_change, None)
    covering = _fitted(alpha, size, 255, 0).clamp(0, 1)
    return Layer(picture, may_change, covering if alone else covering.where(may_change, 1))


def _fitted(image: Image.Image, size: Size, one: float = 127.5, zero: float = 1) -> Tensor:
    """Cut and scale an image of bytes to values / `one` − `zero` [C, H, W].

    One channel after the other, so that no more than one is ever of the file's size and four bytes a pixel.
    """
    channels = (torch.from_numpy(np.array(image.getchannel(band)))[None] for band in image.getbands())
    return torch.cat([fit(middle(channel, size).float().div_(one).sub_(zero), size) for channel in channels])


def _feathered(mask: Tensor) -> Tensor:
    """Shares of the new image [1, H, W]: 0 outside the mask, rising to 1 within FEATHER_PX of its edge."""
    blurred = F.avg_pool2d(F.pad(mask[None], (FEATHER_PX,) * 4, mode="replicate"), 2 * FEATHER_PX + 1, stride=1)[0]
    return (2 * blurred - 1).clamp(0, 1) * mask
