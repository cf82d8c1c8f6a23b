"""What each mode saves and what it loses: images by every mode, in turn, compared with exact of the same seed.

PSNR and SSIM (Wang et al., 2004) say how near an image is to exact's, not whether it is as good: a Flash image with
other details is far away and may be right. `sharpness` is the strength of the finest detail (root mean square of the
Laplacian) as a share of exact's, medians: below 1 where a mode blurs. The sheet shows the rest. Rows are the modes of
`types.Mode`; that they are equal in everything else is printed.

nano has no Fast of its own: its row is Dev's weights with Fast's preset. `--checkpoint` takes a folder's instead.

    python benchmarks/modes.py [--variants dev fast full] [--images 24] [--threads 2] [--sheet PNG] [--checkpoint DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import Spread, ratio, report
from PIL import Image
from torch import Tensor

from hidream.model.loading import load
from hidream.model.model import Model
from hidream.model.pipeline import generate, prepare
from hidream.request import ImageRequest
from hidream.types import SAMPLING_PRESETS, Mode, Size, Variant

OBJECTS = ("fox", "red apple", "rocket", "house", "panda", "sailboat", "strawberry", "robot", "owl", "car", "star")
STYLES = ("flat style", "3d render", "cartoon", "minimal", "glossy 3d")
PLACES = ("on a red background", "in the sky", "at sunset", "on a white background", "in the ocean", "in the desert")
PLACES += ("on a blue background", "in the snow", "at night", "on a yellow background", "in a meadow", "in space")
SIZE = Size(512, 512)
FIRST_SEED = 1000  # none of those that the plans were found with
SSIM_SIDE, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03  # the window and constants of the paper


@dataclasses.dataclass(frozen=True, slots=True)
class Loss:
    """How far an image is from exact's."""

    psnr_db: float
    ssim: float
    sharpness: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=Variant, nargs="+", default=[Variant.DEV, Variant.FAST, Variant.FULL])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", type=Path, help="a PNG of all images: a row for each mode")
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    rows: list[dict[str, object]] = []
    drawn: list[np.ndarray] = []
    versions: list[str] = []
    for variant in arguments.variants:
        model = loaded(variant, arguments.checkpoint)
        runs = run(model, requests(variant, arguments.images))
        rows += [row(variant, mode, runs) for mode in Mode]
        drawn += [np.concatenate([image for image, *_ in runs[mode]], axis=1) for mode in Mode]
        versions += [model.version_of(mode) for mode in Mode]
    if arguments.sheet:
        Image.fromarray(np.concatenate(drawn)).save(arguments.sheet)
    report("modes", rows, {"size": str(SIZE), "images": arguments.images, "versions": versions})


def loaded(variant: Variant, checkpoint: Path | None) -> Model:
    """Load a variant, nano's Dev for nano's Fast, without a cache of embeddings: exact, drawn first, would fill it."""
    stands_in = Variant.DEV if variant is Variant.FAST and checkpoint is None else variant
    model = load(stands_in, checkpoint)
    return dataclasses.replace(model, text=dataclasses.replace(model.text, cache=None))


def requests(variant: Variant, count: int) -> list[ImageRequest]:
    """Prompts of several kinds (one object or two, small or big, in a scene or on a ground), each with its own seed."""
    preset = SAMPLING_PRESETS[variant]
    settings = {"steps": preset.steps, "guidance": preset.guidance, "shift": preset.shift}
    return [ImageRequest(prompt(i), SIZE, FIRST_SEED + i, **settings) for i in range(count)]


def prompt(i: int) -> str:
    """The i-th prompt: strides that are coprime to the lists' lengths mix their words."""
    one, other = OBJECTS[7 * i % len(OBJECTS)], OBJECTS[(7 * i + 4) % len(OBJECTS)]
    what = (_a(one), f"a small {one}", f"{_a(one)} and {_a(other)}", f"a big {one}")[i % 4]
    return f"{STYLES[i % len(STYLES)]} {what} {PLACES[5 * i % len(PLACES)]}"


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


Run = tuple[np.ndarray, float, float, int, Loss | None]
"""An image, its seconds in all and of denoising, its calls of the transformer, and its loss, if it is not exact's."""


def run(model: Model, asked: list[ImageRequest]) -> dict[Mode, list[Run]]:
    """Draw every request in every mode; the modes in turn, so that what else the machine does falls on all alike."""
    generate(model, asked[0])  # warms up
    runs: dict[Mode, list[Run]] = {mode: [] for mode in Mode}
    for request in asked:
        exact = None
        for mode in Mode:
            request = dataclasses.replace(request, mode=mode)
            calls = sum(sum(each.evaluated) for each in prepare(model, request).passes)
            image = generate(model, request)
            exact = image.pixels if exact is None else exact
            lost = None if mode is Mode.EXACT else loss(image.pixels, exact)
            runs[mode].append((image.pixels, image.timings.inference_s, image.timings.denoise_s, calls, lost))
    return runs


def row(variant: Variant, mode: Mode, runs: dict[Mode, list[Run]]) -> dict[str, object]:
    _, total, denoise, calls, losses = zip(*runs[mode], strict=True)
    _, exact_total, exact_denoise, *_ = zip(*runs[Mode.EXACT], strict=True)
    lost = [each for each in losses if each is not None]
    far = sorted(each.psnr_db for each in lost)
    return {
        "variant": variant,
        "mode": mode,
        "steps": SAMPLING_PRESETS[variant].steps,
        "calls": statistics.median(calls),
        "total ms": str(Spread.of(list(total))).strip(),
        "ratio": ratio(list(exact_total), list(total)),
        "ratio, denoise": ratio(list(exact_denoise), list(denoise)),
        "PSNR dB": statistics.mean(far) if lost else None,
        "PSNR dB, worst tenth": far[len(far) // 10] if lost else None,
        "SSIM": statistics.mean(each.ssim for each in lost) if lost else None,
        "sharpness": statistics.median(each.sharpness for each in lost) if lost else None,
    }


def loss(image: np.ndarray, exact: np.ndarray) -> Loss:
    """Compare two images, uint8 [height, width, 3]."""
    ours, theirs = (torch.from_numpy(each).permute(2, 0, 1).float() / 255 for each in (image, exact))
    error = float(F.mse_loss(ours, theirs))
    psnr_db = -10 * math.log10(error) if error else math.inf
    return Loss(psnr_db, ssim(ours, theirs), detail(ours) / detail(theirs))


def ssim(one: Tensor, other: Tensor) -> float:
    """Structural similarity of two images [3, H, W] in 0 to 1: the mean over places and colours."""
    at = torch.arange(SSIM_SIDE) - SSIM_SIDE // 2
    window = torch.exp(-(at**2) / (2 * SSIM_SIGMA**2))
    window = window / window.sum()

    def mean(x: Tensor) -> Tensor:
        rows = F.conv2d(x[:, None], window[None, None, :, None])
        return F.conv2d(rows, window[None, None, None, :])

    mean_1, mean_2 = mean(one), mean(other)
    spread = mean(one**2) + mean(other**2) - mean_1**2 - mean_2**2
    common = mean(one * other) - mean_1 * mean_2
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    alike = (2 * mean_1 * mean_2 + c1) * (2 * common + c2) / ((mean_1**2 + mean_2**2 + c1) * (spread + c2))
    return float(alike.mean())


def detail(image: Tensor) -> float:
    """Strength of the finest detail of an image [3, H, W]: the root mean square of its Laplacian."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    return float(F.conv2d(image[:, None], kernel[None, None]).square().mean().sqrt())


if __name__ == "__main__":
    main()
