"""`hidream doctor --reference`: an image of ours beside one of stock diffusers, from the same files, prompt and seed.

The stock pipeline is used as it is, with one addition: its scheduler gets the request's generator, which the pipeline
forgets to pass on (docs/REFERENCES.md), so that both sides see the same noise. It reads folders in the diffusers layout
only. Both models are not in memory at the same time. Nothing else in the package needs diffusers, which is an extra of
its own, `reference`.
"""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from hidream.commands.exit_status import ExitStatus
from hidream.commands.grammar import Given
from hidream.commands.printing import result
from hidream.commands.setting_flags import configured
from hidream.errors import ConfigurationError
from hidream.missing import importing
from hidream.request import ImageRequest
from hidream.settings.tables import Settings
from hidream.types import Render, Size, Variant

if TYPE_CHECKING:
    from hidream.model.model import Model

SAME_DB, SAME_16_BITS_DB = 60.0, 30.0
"""From this PSNR on, two images are the same: nano in float32 reaches 94 dB, and 45 with another tokenizer. Rounding to
16 bits moves every step; nobody has measured how far."""
PROMPT, SEED = "a fox in the snow", 7


def compare(given: Given, config: Settings) -> int:
    """Generate with both, and say how much they differ.

    Raises ConfigurationError without a diffusers folder, MissingPackage without diffusers, before anything is loaded.
    """
    with importing("`hidream doctor --reference`", "reference"):
        import diffusers  # noqa: F401
    from hidream.model.pipeline import generate
    from hidream.worker.loading import load_configured

    variant, config = configured(given, config)
    model = load_configured(variant, config)
    side = side_of(model)
    prompt, seed = given.prompt or PROMPT, SEED if given.seed is None else given.seed
    request = ImageRequest(prompt, Size(side, side), seed, steps=given.steps, render=Render.NATIVE)
    ours = generate(model, request).pixels
    facts = {"version": model.version, "prompt": prompt, "size": str(request.size), "seed": seed}
    pipeline = _stock(variant, config, model)
    tokens, float32 = model.text.tokens, model.dtype.itemsize == 4
    del model
    gc.collect()
    theirs = _theirs(pipeline, request, variant, tokens)
    difference = np.abs(ours.astype(np.int16) - theirs.astype(np.int16))
    psnr = _psnr(difference)
    same = psnr >= (SAME_DB if float32 else SAME_16_BITS_DB)
    if given.out is not None:
        from hidream.outputs.encode import pil_image

        pil_image(np.concatenate([ours, theirs], axis=1)).save(given.out)
        facts["side_by_side"] = str(given.out)
    facts |= {"psnr_db": round(psnr, 2), "largest_difference": int(difference.max()), "same": same}
    facts["mean_difference"] = round(float(difference.mean()), 4)
    verdict = "the images are the same" if same else "the images differ: please report this with --json"
    text = f"PSNR {psnr:.1f} dB, differences of up to {difference.max()} of 255, {difference.mean():.3f} on average"
    result(given, facts, f"{facts['version']}, {facts['size']}, seed {seed}\n{text}\n{verdict}")
    return ExitStatus.OK if same else ExitStatus.FAILED


def side_of(model: Model) -> int:
    """The side in pixels of the square that the model generates best."""
    return int(model.best_tokens**0.5) * int(model.token_px)


def _psnr(difference: np.ndarray) -> float:
    """The peak signal-to-noise ratio in dB; 99 if nothing differs."""
    square = float((difference.astype(np.float64) ** 2).mean())
    return 99.0 if square == 0 else float(10 * np.log10(255**2 / square))


def _stock(variant: Variant, config: Settings, model: Model) -> Any:  # noqa: ANN401 - diffusers has no types
    """Load diffusers' pipeline from the folders of ours. Raises ConfigurationError without such."""
    import diffusers
    import transformers

    from hidream.formats.convert import stock_folder
    from hidream.model.checkpoint.inferred import published_config
    from hidream.worker.loading import sources_configured

    parts = {name: source.path for name, source in sources_configured(variant, config).items()}
    shared, scheduler = parts["vae"].parent, parts["transformer"].parent / "scheduler"
    for needed in (shared / "model_index.json", scheduler / "scheduler_config.json"):
        if not needed.is_file():
            raise ConfigurationError(f"there is no {needed}; accepted: a model folder in the diffusers layout")
    kind = getattr(diffusers, json.loads((scheduler / "scheduler_config.json").read_text())["_class_name"])
    load: dict[str, Any] = {"torch_dtype": model.dtype}  # 0.36 knows no other name
    with _silence(diffusers, transformers), stock_folder(parts["transformer"], published_config) as folder:
        pipeline = diffusers.HiDreamImagePipeline.from_pretrained(
            shared,
            transformer=diffusers.HiDreamImageTransformer2DModel.from_pretrained(folder, **load),
            scheduler=kind.from_pretrained(scheduler),
            tokenizer_4=transformers.PreTrainedTokenizerFast.from_pretrained(parts["tokenizer_4"]),
            text_encoder_4=transformers.LlamaForCausalLM.from_pretrained(parts["text_encoder_4"], dtype=model.dtype),
            **load,
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.default_sample_size = side_of(model) // pipeline.vae_scale_factor
    if model.device.type == "cuda":
        pipeline.enable_sequential_cpu_offload()
    return pipeline


@contextmanager
def _silence(*libraries: ModuleType) -> Iterator[None]:
    """Within the block, diffusers and transformers show no progress and no warnings."""
    loggers = [library.utils.logging for library in libraries]
    before = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.disable_progress_bar()
        logger.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # later versions say `dtype`, and accept this one until 1.0
            yield
    finally:
        for logger, verbosity in zip(loggers, before, strict=True):
            logger.enable_progress_bar()
            logger.set_verbosity(verbosity)


def _theirs(pipeline: Any, request: ImageRequest, variant: Variant, tokens: int) -> np.ndarray:  # noqa: ANN401
    """Generate with diffusers; the generator of the request also draws the noise of the steps."""
    import torch

    from hidream.types import SAMPLING_PRESETS

    generator = torch.Generator().manual_seed(request.seed)
    step = pipeline.scheduler.step
    if "generator" in step.__code__.co_varnames:
        pipeline.scheduler.step = lambda *args, **kwargs: step(*args, **kwargs | {"generator": generator})
    image = pipeline(
        request.prompt_text,
        height=request.size.height,
        width=request.size.width,
        num_inference_steps=request.steps or SAMPLING_PRESETS[variant].steps,
        guidance_scale=SAMPLING_PRESETS[variant].guidance,
        generator=generator,
        max_sequence_length=tokens,
        output_type="pil",
    ).images[0]
    return np.asarray(image.convert("RGB"))
