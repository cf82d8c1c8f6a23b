"""The progress of a task's images: the model thread writes it, and the event loop reads it now and then.

Nothing here waits or locks: each value is replaced as a whole, and a value that is one step old does no harm. Previews
are made only while a client watches, and only after the event loop has taken the previous one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hidream.outputs.encode import encode
from hidream.types import ImageFormat, Step
from hidream.worker.bridge import StepCallbacks

if TYPE_CHECKING:
    import numpy as np

PREVIEW_SIDE_PX = 256
"""The longer side of a preview at most. At 1024² the published model has 128 latent cells, with one pixel for each."""
PREVIEW_QUALITY = 80
"""The JPEG quality of a preview; its resolution limits it more. 128 × 128 pixels take 5 KB instead of 12."""


class TaskProgress:
    """The progress of a task: the mean steps of its images, and previews of the first unfinished image.

    `watched`: whether a client watches, so that previews are needed.
    """

    def __init__(self, images: int) -> None:
        self.watched = False
        self._done = [0] * images
        self._steps = 0
        self._reported = 0
        self._preview: np.ndarray | None = None

    def listener(self, i: int) -> StepCallbacks:
        """Return the callbacks for the steps of the `i`th image."""

        def on_step(step: Step[np.ndarray]) -> None:
            self._done[i], self._steps = step.done, step.of
            if step.preview is not None:
                self._preview = step.preview

        def wants_preview(_done: int) -> bool:
            return self.watched and self._preview is None and all(each == self._steps for each in self._done[:i])

        return StepCallbacks(on_step, wants_preview)

    @property
    def left(self) -> float:
        """The fraction of the work that is left, 0 to 1."""
        return 1 - sum(self._done) / (len(self._done) * self._steps) if self._steps else 1.0

    def take_step(self) -> Step[np.ndarray] | None:
        """Return the task's step if it is another one than at the last call, or has a new preview; None if not."""
        done, preview = sum(self._done) // len(self._done), self._preview
        if done == self._reported and preview is None:
            return None
        self._reported, self._preview = done, None
        return Step(done, self._steps, preview)


def preview_jpeg(preview: np.ndarray, seed: int, version: str) -> bytes:
    """Encode a preview [h, w, 3], downsampled if it is large."""
    stride = math.ceil(max(preview.shape) / PREVIEW_SIDE_PX)
    pixels = preview[::stride, ::stride]
    return encode(pixels, ImageFormat.JPEG, seed=seed, version=version, output_quality=PREVIEW_QUALITY)
