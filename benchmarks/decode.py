"""From the last latent to the bytes of a file: layouts of the autoencoder, stages, file formats; and previews.

Layouts: nano's autoencoder and one of FLUX's size with random weights, contiguous and channels last, with the largest
difference relative to the image's largest value, and the memory that decoding once takes above what there is (in a
process of its own; on the host what is resident, on CUDA what is allocated). Stages: what follows the last step of nano
for an image of 1024². Files: nano's drawings and an image with a photo's noise, with the size and what is lost.
Previews: how near they are to what a latent decodes to, at some of 28 steps.

    python benchmarks/decode.py [--rounds 7] [--threads 2] [--device auto] [--parts layouts stages files previews]
                                [--cpu-time]
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import io
import itertools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import Spread, interleaved, ratio, report
from PIL import Image
from process import forget_peak, fresh, load_average, status_bytes
from torch import Tensor

from hidream.model.checkpoint.checkpoint import embedded
from hidream.model.latents.autoencoder import load_autoencoder
from hidream.model.latents.autoencoder_kl import AutoencoderKL, Config
from hidream.model.latents.preview import fit_preview
from hidream.model.latents.shape import fit, to_pixels
from hidream.model.loading import load
from hidream.model.model import Model
from hidream.model.network.ragged_batch import RaggedBatch
from hidream.model.pipeline import ModelEvaluation, denoise, prepare, resume
from hidream.model.resolve import resolve_device, resolve_dtype
from hidream.outputs.encode import encode
from hidream.request import ImageRequest
from hidream.types import ImageFormat, Size, Variant

PROMPTS = (
    "flat style a fox in the snow",
    "flat style a sailboat in the ocean",
    "3d render a penguin in the snow",
    "minimal a sunflower in a field",
    "flat style a red apple on a white background",
    "flat style a car in the desert",
    "3d a frog",
    "flat style a cat on a teal background",
)
DRAWN = 3
"""Of the prompts' images, those whose files are measured."""
STEPS = (1, 10, 20, 28)
"""Of Dev's 28, those after which previews are looked at."""
FLUX = Config(
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=16,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
"""vae/config.json of FLUX.1 and HiDream-I1."""
LAYOUTS = (("nano", 16), ("nano", 32), ("nano", 64), ("FLUX's size", 32))
"""Autoencoders, and sides of what they decode in latent cells: of 16 pixels for nano's, of 8 for FLUX's."""
FLUX_ROUNDS = 2
PNGS: dict[str, dict[str, Any]] = {
    **{f"level {level}": {"compress_level": level} for level in (1, 3, 4, 6, 9)},
    "Huffman only": {"compress_type": Image.HUFFMAN_ONLY},
    "runs (ours)": {"compress_type": Image.RLE},
}
JPEGS: dict[str, dict[str, Any]] = {
    **{f"{q}, {s}": {"quality": q, "subsampling": s} for q in (90, 95) for s in ("4:2:0", "4:4:4")},
    "95, 4:4:4, optimal code": {"quality": 95, "subsampling": "4:4:4", "optimize": True},
}
WEBPS: dict[str, dict[str, Any]] = {
    f"{q}, method {m}": {"quality": q, "method": m} for q, m in ((90, 0), (90, 2), (90, 4), (90, 6), (95, 2))
}
AVIFS: dict[str, dict[str, Any]] = {
    f"{q}, speed {v}, {s}": {"codec": "aom", "max_threads": 1, "quality": q, "speed": v, "subsampling": s}
    for q, v, s in ((75, 8, "4:4:4"), (80, 6, "4:4:4"), (80, 8, "4:4:4"), (80, 10, "4:4:4"), (80, 8, "4:2:0"))
}

Clock = Callable[[], float]
Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-time", action="store_true", help="time on the processors, where others use them as well")
    parts = {"layouts": layouts, "stages": stages, "files": files, "previews": previews}
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)  # a process of its own, see `peak`
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    if arguments.peak:
        name, cells, side = arguments.peak
        print(
            json.dumps({"peak_bytes": peak_bytes(decoders(name, int(cells), resolve_device(arguments.device))[side])})
        )
        return
    model = load(Variant.DEV, device=arguments.device)
    with torch.inference_mode():
        rows = [row for part in arguments.parts for row in parts[part](model, arguments.rounds, clock)]
    settings = {"device": str(model.device), "dtype": str(model.dtype), "rounds": arguments.rounds}
    report("decode", rows, settings | {"clock": clock.__name__, "load": load_average(), "version": model.version})


def layouts(model: Model, rounds: int, clock: Clock) -> list[Row]:
    rows: list[Row] = []
    for name, cells in LAYOUTS:
        sides = decoders(name, cells, model.device)
        seconds = interleaved(sides, FLUX_ROUNDS if name != "nano" else rounds, warm_up=1, clock=clock)
        expected = sides["contiguous"]()
        for side, decode in sides.items():
            image = decode()
            difference = (image - expected).abs().max() / expected.abs().max()
            result = f"difference {float(difference):.1e}, {peak(name, cells, side, model.device) / 1e6:.0f} MB"
            size, base = f"{image.shape[-1]}²", seconds["contiguous"]
            rows.append(row_of(f"decode, {name}", size, side, seconds[side], base, result))
    return rows


def decoders(name: str, cells: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """Three ways to decode the same latent with the same weights."""
    dtype = resolve_dtype("auto", device)
    module: Any
    if name == "nano":
        module = load_autoencoder(embedded(Variant.DEV), device, dtype).module
    else:
        torch.manual_seed(0)
        module = AutoencoderKL(FLUX).to(device, dtype).eval().requires_grad_(False)
    plain = torch.randn(1, 16, cells, cells, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    laid, relaid = plain.contiguous(memory_format=torch.channels_last), copy.deepcopy(module)
    relaid.to(memory_format=torch.channels_last)
    return {
        "contiguous": lambda: module.decode(plain),
        "channels last": lambda: module.decode(laid),
        "weights too": lambda: relaid.decode(laid),
    }


def peak(name: str, cells: int, side: str, device: torch.device) -> int:
    """What decoding takes above what there is, in a process where nothing else has been computed."""
    options = ("--device", str(device), "--threads", str(torch.get_num_threads()))
    return int(fresh(__file__, "--peak", name, str(cells), side, *options)["peak_bytes"])


@torch.inference_mode()
def peak_bytes(decode: Callable[[], Tensor]) -> int:
    """Decode once: what it takes above what there is."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        decode()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # or decoding would reuse unseen what loading has given back
    forget_peak()
    before = status_bytes("VmRSS")
    decode()
    return status_bytes("VmHWM") - before


def stages(model: Model, rounds: int, clock: Clock) -> list[Row]:
    latent, size = estimates(model, PROMPTS[0])[-1], Size(1024, 1024)
    image = model.vae.decode(latent)[0].float()
    fitting = fit(image, size)
    pixels = to_pixels(fitting).cpu().numpy()
    sides: dict[str, Callable[[], object]] = {
        "decode": lambda: model.vae.decode(latent),
        "fit": lambda: fit(image, size),
        "to_pixels": lambda: to_pixels(fitting).cpu(),
        "PNG": lambda: encode(pixels, ImageFormat.PNG, seed=0, version=model.version),
    }
    seconds = interleaved(sides, rounds, clock=clock)
    return [row_of("stages, nano", "1024²", side, series, seconds["decode"]) for side, series in seconds.items()]


def files(model: Model, rounds: int, clock: Clock) -> list[Row]:
    drawn = [model.vae.decode(estimates(model, prompt)[-1])[0].float() for prompt in PROMPTS[:DRAWN]]
    cases = [("nano", side, [pixels_of(image, side) for image in drawn]) for side in (512, 1024, 1536)]
    cases.append(("photo's noise", 1024, [photo(1024)]))
    formats = {ImageFormat.PNG: PNGS, ImageFormat.JPEG: JPEGS, ImageFormat.WEBP: WEBPS, ImageFormat.AVIF: AVIFS}
    rows: list[Row] = []
    for what, side, arrays in cases:
        for output_format, candidates in formats.items():
            seconds = interleaved(writers(arrays, output_format, candidates), rounds, warm_up=0, clock=clock)
            base = seconds[next(iter(candidates))]
            for way, series in seconds.items():
                result = judged(arrays, output_format, candidates[way])
                rows.append(row_of(f"{output_format}, {what}", f"{side}²", way, series, base, result))
    return rows


def writers(
    arrays: list[np.ndarray], output_format: ImageFormat, candidates: Mapping[str, dict[str, Any]]
) -> dict[str, Callable[[], object]]:
    """Write one image after the other, round by round: a function for each way."""
    images = [Image.fromarray(pixels) for pixels in arrays]
    turns = {way: itertools.cycle(images) for way in candidates}
    return {way: lambda way=way: saved(next(turns[way]), output_format, candidates[way]) for way in candidates}


def judged(arrays: list[np.ndarray], output_format: ImageFormat, options: dict[str, Any]) -> str:
    """Say how large the files are, and how near to the images."""
    written = [saved(Image.fromarray(pixels), output_format, options) for pixels in arrays]
    size = f"{sum(map(len, written)) / len(written) / 1024:.0f} KiB"
    if output_format is ImageFormat.PNG:
        return size
    read = [np.asarray(Image.open(io.BytesIO(file))) for file in written]
    return f"{size}, {np.mean([psnr_db(*pair) for pair in zip(read, arrays, strict=True)]):.1f} dB"


def saved(image: Image.Image, output_format: ImageFormat, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, output_format.upper(), **options)
    return file.getvalue()


def previews(model: Model, rounds: int, clock: Clock) -> list[Row]:
    fitted = fit_preview(model.vae)
    seen = [estimates(model, prompt) for prompt in PROMPTS]
    sides = {"fit": lambda: fit_preview(model.vae), "draw": lambda: fitted.render(seen[0][-1])}
    seconds = interleaved(sides, rounds, clock=clock)
    rows = [row_of("previews, nano", "16²", "fit", seconds["fit"], seconds["fit"])]
    for step in STEPS:
        latents = [x0[step - 1] for x0 in seen]
        ours = np.stack([fitted.render(x0) for x0 in latents]).astype(float)
        theirs = np.stack([pooled(model, x0) for x0 in latents])
        psnr = np.mean([psnr_db(*pair) for pair in zip(ours, theirs, strict=True)])
        unexplained = ((ours - theirs) ** 2).sum() / ((theirs - theirs.mean((0, 1, 2))) ** 2).sum()
        result = f"{psnr:.1f} dB, R² {1 - unexplained:.3f}"
        rows.append(row_of("previews, nano", "16²", f"draw, step {step}", seconds["draw"], seconds["fit"], result))
    return rows


def estimates(model: Model, prompt: str) -> list[Tensor]:
    """Draw a prompt with its place in PROMPTS as the seed: what the model takes the image to be after each step."""
    seen: list[Tensor] = []
    prepared = prepare(model, ImageRequest(prompt, Size(1024, 1024), PROMPTS.index(prompt)))
    drawing = denoise(
        model, prepared, model.text.embed(prepared.prompts).embeds, lambda _done, x0: seen.append(x0.clone())
    )
    said: ModelEvaluation | Tensor = next(drawing)
    while isinstance(said, ModelEvaluation):
        (velocity,) = model.transformer.velocity([said.latent], [said.modulation], RaggedBatch.of([said.conditioning]))
        said = resume(drawing, velocity)
    return seen


def pixels_of(image: Tensor, side_px: int) -> np.ndarray:
    return to_pixels(fit(image, Size(side_px, side_px))).cpu().numpy()


def pooled(model: Model, latent: Tensor) -> np.ndarray:
    """Mean colours of what a latent decodes to, [h, w, 3] in 0 to 255."""
    cells = F.avg_pool2d(model.vae.decode(latent).float().clamp(-1, 1), model.vae.factor)[0]
    return ((cells + 1) * 127.5).permute(1, 2, 0).cpu().numpy()


def photo(side_px: int) -> np.ndarray:
    """Make what a photo is to a packer: a spectrum that falls with frequency, alike in all colours, and fine noise."""
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side_px)[:, None], np.fft.fftfreq(side_px))
    frequency[0, 0] = 1

    def cloud() -> np.ndarray:
        values = np.fft.ifft2(np.fft.fft2(random.normal(size=(side_px, side_px))) / frequency).real
        return values / values.std()

    brightness = cloud()
    planes = [128 + 40 * brightness + 20 * cloud() + 3 * random.normal(size=frequency.shape) for _ in range(3)]
    return np.clip(np.stack(planes, -1), 0, 255).round().astype(np.uint8)


def psnr_db(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((ours.astype(float) - theirs) ** 2), 1e-10)))


def row_of(what: str, size: str, side: str, series: list[float], base: list[float], result: str = "") -> Row:
    ms = str(Spread.of(series)).strip()
    return {"what": what, "size": size, "side": side, "ms": ms, "ratio": ratio(base, series), "result": result}


if __name__ == "__main__":
    main()
