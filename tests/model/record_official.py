"""Record what the official repository computes on a tiny transformer with random weights, for `test_official.py`.

    git clone https://github.com/HiDream-ai/HiDream-I1 ../HiDream-I1     # beside the checkout; recorded: 9b42dd6
    .venv/bin/python tests/model/record_official.py --official ../HiDream-I1

Their transformer, schedulers and pipeline run as they are, in float32 on a CPU, through scaled_dot_product_attention
(flash-attn is absent). None of their code is in this file or in what it writes: the weights come from a seed
(`tiny.reference`), as does the noise of the steps; written are the inputs, the outputs and the schedules.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor

from hidream.model.network.config import PUBLISHED_TOKENS
from hidream.types import SAMPLING_PRESETS, Sampler, Variant

RECORDING = Path(__file__).parent / "fixtures" / "official.safetensors"
NOISE_SEED = 7
CELL_PX = 8
"""Pixels of a latent cell with the official autoencoder."""


class Loop(NamedTuple):
    """One image: a variant's own settings on a latent of that shape, in cells."""

    variant: Variant
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.variant}.{self.shape}"

    @property
    def shape(self) -> str:
        """Name of the latent it starts from."""
        return f"{self.height}x{self.width}"


class Run(NamedTuple):
    """A sampler alone, on a function in the model's place; `shift` None is what follows from the published model."""

    sampler: Sampler
    steps: int
    shift: float | None

    def __str__(self) -> str:
        return f"{self.sampler}.{self.steps}.{self.shift}"


RUNS = (
    Run(Sampler.FLASH, 28, 6.0),  # Dev
    Run(Sampler.FLASH, 16, 3.0),  # Fast
    Run(Sampler.FLASH, 3, 1.0),
    Run(Sampler.FLASH, 2, 10.0),
    Run(Sampler.UNIPC, 50, None),  # Full
    Run(Sampler.UNIPC, 200, 3.0),
    Run(Sampler.UNIPC, 5, 1.0),
    Run(Sampler.UNIPC, 3, 6.0),
    Run(Sampler.UNIPC, 2, 3.0),
    Run(Sampler.UNIPC, 1, 3.0),
)


class NoTokenizer:
    """What their pipeline's constructor reads of the Llama tokenizer; the embeddings are given."""

    eos_token = ""


LOOPS = (
    Loop(Variant.DEV, 16, 16),
    Loop(Variant.DEV, 10, 24),
    Loop(Variant.FAST, 10, 24),
    Loop(Variant.FULL, 16, 16),
    Loop(Variant.FULL, 10, 24),
)


def main() -> None:
    """Write the recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, required=True, help="folder of the official repository")
    written = record(load(parser.parse_args().official))
    RECORDING.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in written.items()}, RECORDING)
    sys.stdout.write(f"{RECORDING}: {RECORDING.stat().st_size} bytes\n")


def load(folder: Path) -> SimpleNamespace:
    """Import the official classes from their folder."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        package = importlib.import_module("hi_diffusers")
        flash = importlib.import_module("hi_diffusers.schedulers.flash_flow_match")
        unipc = importlib.import_module("hi_diffusers.schedulers.fm_solvers_unipc")
    finally:
        sys.path.pop(0)
    return SimpleNamespace(
        transformer=package.HiDreamImageTransformer2DModel,
        pipeline=package.HiDreamImagePipeline,
        calculate_shift=importlib.import_module(package.HiDreamImagePipeline.__module__).calculate_shift,
        schedulers={
            Sampler.FLASH: flash.FlashFlowMatchEulerDiscreteScheduler,
            Sampler.UNIPC: unipc.FlowUniPCMultistepScheduler,
        },
    )


def record(official: SimpleNamespace) -> dict[str, Tensor]:
    """Everything that is written: the inputs, then what came of each run and of each loop."""
    inputs = make_inputs()
    written = dict(inputs)
    for run in RUNS:
        written |= {f"{run}.{name}": value for name, value in sample(official, inputs, run).items()}
    for loop in LOOPS:
        written |= {f"{loop}.{name}": value for name, value in draw(official, inputs, loop).items()}
    return written


def make_inputs() -> dict[str, Tensor]:
    """A latent of each shape, two prompts of which the first is the negative one, and the first noise of the seed."""
    square, _, t5, llama, pooled = tiny.inputs(2, 16, 16)
    wide = tiny.inputs(1, 10, 24)[0]
    noise = torch.randn(wide.shape, generator=torch.Generator().manual_seed(NOISE_SEED))
    return {"16x16": square[:1].clone(), "10x24": wide, "t5": t5, "llama": llama, "pooled": pooled, "noise": noise}


def sample(official: SimpleNamespace, inputs: Mapping[str, Tensor], run: Run) -> dict[str, Tensor]:
    """Take all steps of a run with their scheduler alone: its noise levels and times, and where it ends."""
    if run.sampler is Sampler.FLASH:
        scheduler = make_scheduler(official, run.sampler, run.shift)
        scheduler.set_timesteps(run.steps)
    else:
        scheduler = make_scheduler(official, run.sampler, SAMPLING_PRESETS[Variant.FULL].shift)
        shift = run.shift or math.exp(official.calculate_shift(PUBLISHED_TOKENS))
        scheduler.set_timesteps(run.steps, shift=shift)
    torch.manual_seed(NOISE_SEED)  # their steps draw from the global generator
    x = run_start(inputs)
    for time in scheduler.timesteps:
        x = scheduler.step(velocity(x, float(time)), time, x, return_dict=False)[0]
    return {"sigmas": scheduler.sigmas, "timesteps": scheduler.timesteps.float(), "x": x}


def velocity(x: Tensor, time: float) -> Tensor:
    """Stands for the model: smooth, and different at every time."""
    return torch.sin(3 * x) * (0.5 + time / 1000) + 0.1 * x


def run_start(inputs: Mapping[str, Tensor]) -> Tensor:
    """The small latent that every run starts from."""
    return inputs["16x16"][:, :4, :4, :4].clone()


def draw(official: SimpleNamespace, inputs: Mapping[str, Tensor], loop: Loop) -> dict[str, Tensor]:
    """Let their pipeline draw: its times, how often it called the transformer, the first answer, the last latent."""
    preset = SAMPLING_PRESETS[loop.variant]
    pipeline = make_pipeline(official, preset.sampler, preset.shift)
    calls: list[Tensor] = []
    pipeline.transformer.register_forward_hook(lambda _module, _inputs, output: calls.append(output[0]))
    torch.manual_seed(NOISE_SEED)  # their steps draw from the global generator
    latent = pipeline(
        "any",
        height=loop.height * CELL_PX,
        width=loop.width * CELL_PX,
        num_inference_steps=preset.steps,
        guidance_scale=preset.guidance,
        latents=inputs[loop.shape].clone(),
        output_type="latent",
        **prompts(inputs, guided=preset.guidance > 1),
    ).images
    return {
        "timesteps": pipeline.scheduler.timesteps.float(),
        "calls": torch.tensor(len(calls)),
        "first_call": calls[0],
        "latent": latent,
    }


def make_pipeline(official: SimpleNamespace, sampler: Sampler, shift: float) -> Any:
    """Their pipeline without text encoders."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(tiny.CONFIG).items()}
    transformer = official.transformer(**values).eval().requires_grad_(False)
    transformer.load_state_dict(tiny.reference().state_dict())
    absent = dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"))
    pipeline = official.pipeline(
        scheduler=make_scheduler(official, sampler, shift),
        vae=tiny.autoencoder_kl(),
        tokenizer=None,
        tokenizer_2=None,
        tokenizer_3=None,
        tokenizer_4=NoTokenizer(),
        **absent,
    )
    pipeline.transformer = transformer
    pipeline.default_sample_size = 16  # cells: the area that every size is brought to
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_scheduler(official: SimpleNamespace, sampler: Sampler, shift: float | None) -> Any:
    """Their scheduler as their `inference.py` makes it (line 55)."""
    return official.schedulers[sampler](num_train_timesteps=1000, shift=shift, use_dynamic_shifting=False)


def prompts(inputs: Mapping[str, Tensor], guided: bool) -> dict[str, Any]:
    """Return the embeddings as their pipeline takes them, [T5, Llama]; the batch's first is the negative prompt."""
    t5, llama, pooled = inputs["t5"], inputs["llama"], inputs["pooled"]
    positive = {"prompt_embeds": [t5[1:], llama[:, 1:]], "pooled_prompt_embeds": pooled[1:]}
    if not guided:
        return positive
    return positive | {
        "negative_prompt_embeds": [t5[:1], llama[:, :1]],
        "negative_pooled_prompt_embeds": pooled[:1],
    }


if __name__ == "__main__":
    main()
