"""What a request brings to draw upon: a picture to start from, and a mask of what may change.

Files of any format that Pillow reads become tensors of the shape that the model draws; the mask also becomes one of
the finished picture, so that what it protects comes back to the last pixel.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hidream.errors import InvalidInput
from hidream.model.shape import fit
from hidream.types import ImageRequest, Size

PIXELS_MAX = 2**26
"""Pixels that a file may have: 8192², more than any camera's, less than a decompression bomb's."""
FEATHER_PX = 8
"""Width of the seam, within the mask, along which what is new blends into what was there."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """A picture [3, H, W] in −1 to 1, and where it may change: a mask [1, H, W] of 0 and 1, or None for everywhere."""

    picture: Tensor
    mask: Tensor | None

    def at(self, size: Size) -> Canvas:
        """Scale to cover `size` and cut out the centre."""
        mask = None if self.mask is None else (fit(self.mask, size) >= 0.5).float()
        return Canvas(fit(self.picture, size), mask)

    def keep(self, drawn: Tensor) -> Tensor:
        """Lay the picture back over `drawn` [3, H, W], of its own size, wherever the mask says that it stays."""
        if self.mask is None:
            return drawn
        share = _feathered(self.mask).to(drawn)
        return torch.where(share > 0, self.picture.to(drawn).lerp(drawn, share), self.picture.to(drawn))


def open_canvas(request: ImageRequest) -> Canvas | None:
    """Read the request's files. Raises InvalidInput when they are no pictures, or their shapes differ."""
    if request.image is None:
        return None
    image = _opened("image", request.image).convert("RGB")
    picture = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
    if request.mask is None:
        return Canvas(picture, None)
    mask = _opened("mask", request.mask).convert("L")
    if mask.size != image.size:
        raise InvalidInput(
            f"mask is {mask.width}*{mask.height} pixels and image {image.width}*{image.height}; accepted: equal sizes"
        )
    return Canvas(picture, (torch.from_numpy(np.array(mask))[None].float() / 255 >= 0.5).float())


def cells(mask: Tensor, rows: int, columns: int) -> Tensor:
    """Mask [1, H, W] to the latent's cells [1, 1, rows, columns]: 1 for each that the mask touches."""
    return F.adaptive_max_pool2d(mask[None], (rows, columns))


def _opened(field: str, data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > PIXELS_MAX:
            raise InvalidInput(f"{field} has {image.width}*{image.height} pixels; accepted: {PIXELS_MAX} in all")
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:  # whose text names an object in memory
        raise InvalidInput(
            f"{field} is no picture that can be read ({len(data):,} bytes); accepted: a PNG, JPEG or WebP file"
        ) from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"{field} cannot be read: {error}; accepted: a PNG, JPEG or WebP file") from error


def _feathered(mask: Tensor) -> Tensor:
    """Shares of the new picture [1, H, W]: 0 outside the mask, rising to 1 within FEATHER_PX of its edge."""
    blurred = F.avg_pool2d(F.pad(mask[None], (FEATHER_PX,) * 4, mode="replicate"), 2 * FEATHER_PX + 1, stride=1)[0]
    return (2 * blurred - 1).clamp(0, 1) * mask
