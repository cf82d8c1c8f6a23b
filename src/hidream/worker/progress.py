"""How far the pictures of one task are: the model thread writes it, the loop reads it now and then.

Nothing here waits or locks: each value is replaced as a whole, and one that is a step old does no harm. Small pictures
are made only while somebody watches, and no sooner than the loop has taken the one before.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from hidream.outputs.encode import encode
from hidream.types import ImageFormat
from hidream.worker.bridge import StepCallbacks

if TYPE_CHECKING:
    import numpy as np

    from hidream.engine.loop import Progress

PREVIEW_SIDE_PX = 256
"""The most of a preview's longer side. The published model's have 128 at 1024², a pixel for each cell of the latent."""
PREVIEW_QUALITY = 80
"""Of a preview's JPEG: what blurs a picture of such cells is the cells. 128 × 128 pixels take 5 KB instead of 12."""


class ProgressUpdate(NamedTuple):
    """Steps done and in all, and perhaps a small picture [h, w, 3]."""

    done: int
    steps: int
    preview: np.ndarray | None


class TaskProgress:
    """Of a task of so many pictures: the mean of their steps, and previews of the first that is not finished.

    `watched` is whether anybody would look at previews.
    """

    def __init__(self, images: int) -> None:
        self.watched = False
        self._done = [0] * images
        self._steps = 0
        self._told = 0
        self._preview: np.ndarray | None = None

    def listener(self, i: int) -> StepCallbacks:
        """Make what is told of the `i`th picture's steps."""

        def on_progress(progress: Progress) -> None:
            self._done[i], self._steps = progress.done, progress.total
            if progress.preview is not None:
                self._preview = progress.preview

        def wants_preview(_done: int) -> bool:
            return self.watched and self._preview is None and all(each == self._steps for each in self._done[:i])

        return StepCallbacks(on_progress, wants_preview)

    @property
    def left(self) -> float:
        """The part that is still to be drawn, 0 to 1."""
        return 1 - sum(self._done) / (len(self._done) * self._steps) if self._steps else 1.0

    def take_update(self) -> ProgressUpdate | None:
        """Take what is new since the last time; None if nothing is."""
        done, preview = sum(self._done) // len(self._done), self._preview
        if done == self._told and preview is None:
            return None
        self._told, self._preview = done, None
        return ProgressUpdate(done, self._steps, preview)


def preview_jpeg(preview: np.ndarray, seed: int, version: str) -> bytes:
    """Encode a preview [h, w, 3], made smaller where it is large."""
    every = math.ceil(max(preview.shape) / PREVIEW_SIDE_PX)
    pixels = preview[::every, ::every]
    return encode(pixels, ImageFormat.JPEG, seed=seed, version=version, output_quality=PREVIEW_QUALITY)
