"""Our transformer against diffusers' on the same weights, one call at a time, interleaved.

nano's weights at several shapes, and one double plus one single block of the real width (2560) with random weights.
Shapes that are not square run in the reference's padded mode on both sides; ours is timed without padding as well,
which the reference cannot do. Each row first checks that both sides answer the same.

    python benchmarks/transformer.py [--rounds 15] [--threads 2]
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from diffusers import HiDreamImageTransformer2DModel
from measure import Spread, interleaved, ratio, report

from hidream.model.config import TransformerConfig
from hidream.model.transformer import Transformer
from hidream.model.weights import embedded, load_transformer
from hidream.types import Variant

WIDE_ROUNDS = 5
WIDE = TransformerConfig(num_layers=1, num_single_layers=1, llama_layers=(0, 1))


def reference_of(ours: Transformer) -> HiDreamImageTransformer2DModel:
    config = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(ours.config).items()}
    with torch.device("meta"):
        reference = HiDreamImageTransformer2DModel(**config)
    reference.load_state_dict(ours.state_dict(), assign=True)
    return reference.eval()


def wide() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(WIDE).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.pack()
    return model


def inputs(config: TransformerConfig, rows: int, columns: int, text_tokens: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(rows * columns)
    p, layers = config.patch_size, max(config.llama_layers) + 1
    t5, llama = config.caption_channels
    return [
        torch.randn(1, config.in_channels, rows * p, columns * p, generator=g),
        torch.full((1,), 700.0),
        torch.randn(1, text_tokens, t5, generator=g),
        torch.randn(layers, 1, text_tokens, llama, generator=g),
        torch.randn(1, config.text_emb_dim, generator=g),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["nano", "width 2560"], choices=["nano", "width 2560"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    nano = load_transformer(embedded(Variant.DEV), torch.device("cpu"), torch.float32)
    cases = [("nano", nano, 16, shape) for shape in ((8, 8), (16, 16), (24, 24), (32, 32), (7, 9), (16, 24))]
    cases += [("width 2560", wide(), 128, shape) for shape in ((16, 16), (32, 32), (24, 32))]
    rows = [
        compare(name, ours, inputs(ours.config, *shape, text_tokens), arguments.rounds if ours is nano else WIDE_ROUNDS)
        for name, ours, text_tokens, shape in cases
        if name in arguments.models
    ]
    report("transformer", rows, {"dtype": "float32", "batch": 1, "rounds": arguments.rounds})


@torch.inference_mode()
def compare(name: str, ours: Transformer, x: list[torch.Tensor], rounds: int) -> dict[str, object]:
    reference = reference_of(ours)
    latent, time, t5, llama, pooled = x
    grid = (latent.shape[2] // 2, latent.shape[3] // 2)
    padded = ours.condition(t5, llama, pooled, grid, padded=True)
    plain = ours.condition(t5, llama, pooled, grid)
    expected = -reference(latent, time, t5, llama, pooled, return_dict=False)[0]
    difference = (ours.velocity_at(latent, time, padded) - expected).abs().max() / expected.abs().max()
    sides = {
        "diffusers": lambda: reference(latent, time, t5, llama, pooled),
        "ours, one call": lambda: ours(latent, time, t5, llama, pooled, padded=True),
        "ours, a step": lambda: ours.velocity_at(latent, time, padded),
        "ours, unpadded": lambda: ours.velocity_at(latent, time, plain),
    }
    seconds = interleaved(sides, rounds, warm_up=1)
    ours_only = [side for side in sides if side != "diffusers"]
    return {
        "model": name,
        "tokens": f"{grid[0]}x{grid[1]}+3x{t5.shape[1]}",
        "difference": f"{difference.item():.1e}",
        **{f"{side} ms": str(Spread.of(series)).strip() for side, series in seconds.items()},
        **{f"ratio, {side[6:]}": ratio(seconds["diffusers"], seconds[side]) for side in ours_only},
    }


if __name__ == "__main__":
    main()
