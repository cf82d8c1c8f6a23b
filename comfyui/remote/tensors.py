"""ComfyUI's images and masks as files' pixels, and back.

B images, H height, W width. IMAGE: floats [B, H, W, 3 or 4] from 0 to 1. MASK: floats [B, H, W] or [H, W], 1 where the
image may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from PIL import Image


def pixels(field: str, tensor: torch.Tensor) -> np.ndarray:
    """Return the 8-bit pixels of one IMAGE [H, W, 3 or 4] or MASK [H, W]. Raises InvalidInput for several."""
    import torch

    from hidream.errors import InvalidInput

    single = tensor if tensor.ndim == 2 else tensor[0]
    if tensor.ndim > 2 and len(tensor) != 1:
        cure = "choose one with the node ImageFromBatch" if field == "image" else "choose one"
        raise InvalidInput(f"{field} has {len(tensor)} images; accepted: one; {cure}", field=field)
    scaled: np.ndarray = (single.float().clamp(0, 1) * 255).round().to(device="cpu", dtype=torch.uint8).numpy()
    return scaled


def batch(images: Sequence[Image.Image]) -> torch.Tensor:
    """Return images of one size as an IMAGE [B, H, W, 3]."""
    import numpy as np
    import torch

    decoded = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(decoded).float() / 255
