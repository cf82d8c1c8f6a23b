"""One image's steps in ComfyUI: its own HiDream, the same MODEL accelerated by our node, and our sampler.

nano's latent from one noise, over the noise levels of one schedule, with Euler's steps, which both have: the latents
must be equal, else a row is void. Text encoders and decoding are left out. ComfyUI's loader knows the published size
only, so its model class is built from nano's configuration (`tests/comfyui/nano_native`).

    python benchmarks/comfyui_nodes.py --comfyui CHECKOUT [--rounds 5] [--threads 2] [--cpu-time]

Run it with the Python of `make test-comfyui`, which has ComfyUI's requirements.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Spread, interleaved, ratio, report
from process import load_average
from torch import Tensor

from comfyui import OPTIONS, version

TESTS = Path(__file__).parents[1] / "tests" / "comfyui"
sys.path.insert(0, str(TESTS))
importlib.import_module("launch_comfyui").tolerate_missing_operators()  # before anything imports transformers

from hidream.model.loading import load  # noqa: E402
from hidream.model.model import Model  # noqa: E402
from hidream.model.network.config import TransformerConfig  # noqa: E402
from hidream.model.network.transformer import Transformer  # noqa: E402
from hidream.model.pipeline import generate_latent, initial_noise, prepare  # noqa: E402
from hidream.model.sampling import sampler  # noqa: E402
from hidream.request import ImageRequest  # noqa: E402
from hidream.types import Render, Sampler, Size, Variant  # noqa: E402

EQUAL = 1e-4
"""Largest difference of two latents, relative to the largest value."""
PROMPT = "a red circle on a white background"
CASES = ((Variant.DEV, 256), (Variant.DEV, 512), (Variant.DEV, 1024), (Variant.FULL, 512))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cpu-time", action="store_true", help="time on the processors, where others use them as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    nano = set_up(arguments.comfyui)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    rows: list[dict[str, object]] = []
    with torch.inference_mode():
        for variant, side_px in CASES:
            sides = sides_of(nano, load(variant, device="cpu"), side_px, arguments.steps)
            rows += compare(f"{variant} {side_px}²", sides, arguments.rounds, clock)
        rows += compare("width 2560, 512²", wide_sides(nano), arguments.rounds, clock)
    settings = {"steps": arguments.steps, "rounds": arguments.rounds, "threads": arguments.threads}
    settings |= {"clock": clock.__name__, "load": load_average(), "comfyui": version(arguments.comfyui)}
    report("comfyui_nodes", rows, settings)


def set_up(checkout: Path) -> Any:
    """Make ComfyUI importable from a checkout, and our nodes as it loads them; return the module that builds nano."""
    sys.path.insert(0, str(checkout))
    own, sys.argv = sys.argv, ["main.py", *OPTIONS["cpu"]]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.sample")
    finally:
        sys.argv = own
    pytest = importlib.import_module("pytest")
    importlib.import_module("loaded_nodes").load(pytest.MonkeyPatch())
    return importlib.import_module("nano_native")


def sides_of(nano: Any, model: Model, side_px: int, steps: int) -> dict[str, Callable[[], Tensor]]:
    """Return the three sides; each gives the final latent in the transformer's scale."""
    request = ImageRequest(
        PROMPT, Size(side_px, side_px), seed=7, steps=steps, sampler=Sampler.EULER, render=Render.NATIVE, guidance=1.0
    )
    prepared = prepare(model, request)
    embeds = model.text.embed(prepared.prompts).embeds
    (only,) = prepared.passes
    noise = initial_noise(model, only.grid, sampler.generator_of(request.seed))
    nodes = importlib.import_module("loaded_nodes")
    conditioning = nodes.module("local.encode").conditioning_of(embeds, PROMPT)
    conditioning[0][1].pop("hidream_prompt")
    sample, samplers = (importlib.import_module(f"comfy.{name}") for name in ("sample", "samplers"))
    native = nano.native(str(model.variant))
    models = {"ComfyUI": native, "accelerated": nodes.module("local.accelerate").accelerated(native, "exact")}

    def sampled(patcher: Any) -> Tensor:
        latent = sample.sample_custom(
            patcher,
            noise,
            1.0,
            samplers.sampler_object("euler"),
            torch.tensor(only.schedule.sigmas),
            conditioning,
            conditioning,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )
        return latent * model.vae.scaling

    sides = {name: lambda patcher=patcher: sampled(patcher) for name, patcher in models.items()}
    return {**sides, "our sampler": lambda: generate_latent(model, prepared, embeds, lambda *_: None)}


def wide_sides(nano: Any) -> dict[str, Callable[[], Tensor]]:
    """Return one evaluation of a double and a single block of the published width, random weights, on each side."""
    numbers = dataclasses.asdict(TransformerConfig(num_layers=1, num_single_layers=1, llama_layers=(0, 1)))
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Transformer(TransformerConfig(**numbers)).state_dict().items()}
    state = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    native = nano.built({name: list(v) if isinstance(v, tuple) else v for name, v in numbers.items()}, state)
    accelerated = importlib.import_module("loaded_nodes").module("local.accelerate").accelerated(native, "exact")

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, texts = noise(1, 16, 64, 64), {"y": noise(1, 2048), "context": noise(1, 128, 4096)}
    texts["encoder_hidden_states_llama3"] = noise(1, 2, 128, 4096)
    forward = accelerated.object_patches["diffusion_model._forward"]
    times = torch.tensor([700.0])
    return {
        "ComfyUI": lambda: native.model.diffusion_model(x, times, **texts),
        "accelerated": lambda: forward(x, times, **texts),
    }


def compare(
    case: str, sides: dict[str, Callable[[], Tensor]], rounds: int, clock: Callable[[], float]
) -> list[dict[str, object]]:
    expected, *others = (side() for side in sides.values())
    apart = max(float((other - expected).abs().max() / expected.abs().max()) for other in others)
    seconds = interleaved(sides, rounds, warm_up=1, clock=clock)
    return [
        {
            "case": case,
            "side": name,
            "ms": str(Spread.of(taken)),
            "ComfyUI ×": round(ratio(seconds["ComfyUI"], taken), 2) if apart <= EQUAL else f"void: {apart:.1e} apart",
            "apart": f"{apart:.1e}",
        }
        for name, taken in seconds.items()
    ]


if __name__ == "__main__":
    main()
