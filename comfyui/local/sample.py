"""Sample HiDream: hidream's own samplers and presets; the image is that of `hidream.Pipeline` for the same seed.

A latent in ComfyUI is what the autoencoder encodes, [B, C, h, w]; hidream's transformer takes it scaled. The numbers
are those of the model's autoencoder, as ComfyUI's `latent_format` has them for FLUX's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.v0_0_2 import io

from . import encode
from .types import CATEGORY, HiDreamDetails, HiDreamLoras, HiDreamModel

if TYPE_CHECKING:
    import torch

    from hidream.model.latents.init_latent import InitLatent
    from hidream.model.model import Model
    from hidream.model.text.text_encoders import TextEmbeds
    from hidream.request import ImageRequest

PRESET = "preset"
PREVIEW_PX = 512


@dataclass(frozen=True)
class Details:
    """What a file says of its image: seed and version; and warnings for the user."""

    seed: int
    version: str
    warnings: tuple[str, ...] = ()


class SampleHiDream(io.ComfyNode):
    """Generates images from a prompt, or from a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            "HidreamSample",
            display_name="Sample HiDream",
            category=CATEGORY,
            description="Generates with hidream's samplers. The same seed gives the same image as hidream's library, "
            "command line and server.",
            inputs=[
                HiDreamModel.Input("hidream"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="for guidance above 1, which only full uses; default: empty"
                ),
                io.Latent.Input(
                    "latent", optional=True, tooltip="an image to start from; with a noise mask, what may change of it"
                ),
                HiDreamLoras.Input("loras", optional=True),
                io.Int.Input("width", default=1024, min=0, max=4096, tooltip="of the image; 0: that of the latent"),
                io.Int.Input("height", default=1024, min=0, max=4096, tooltip="of the image; 0: that of the latent"),
                io.Int.Input("seed", default=0, min=0, max=9_999_999_999, control_after_generate=True),
                io.Int.Input("steps", default=0, min=0, max=200, tooltip="0: the variant's (dev 28, full 50, fast 16)"),
                io.Float.Input(
                    "guidance",
                    default=-1.0,
                    min=-1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="-1: the variant's (full 5, others 0)",
                ),
                io.Float.Input(
                    "shift", default=0.0, min=0.0, max=100.0, step=0.1, tooltip="of the noise levels; 0: the variant's"
                ),
                io.Combo.Input(
                    "sampler",
                    options=[PRESET, "flash", "unipc", "euler"],
                    default=PRESET,
                    tooltip="preset: flash for dev and fast, unipc for full",
                ),
                io.Combo.Input(
                    "mode",
                    options=["exact", "balanced", "turbo"],
                    default="exact",
                    tooltip="balanced, turbo: fewer evaluations of the model, nearly the same image",
                ),
                io.Combo.Input(
                    "render",
                    options=["best", "scaled", "native", "refine", "reference"],
                    default="best",
                    tooltip="the shape in which the model generates, before the image is scaled to its size",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.01, max=1.0, step=0.01, tooltip="how much of the latent may change"
                ),
                io.Boolean.Input("previews", default=True, tooltip="show a small image after each step"),
            ],
            outputs=[io.Latent.Output(), io.Image.Output(), HiDreamDetails.Output(display_name="details")],
        )

    @classmethod
    def execute(
        cls,
        hidream: Any,
        positive: list[list[Any]],
        width: int,
        height: int,
        seed: int,
        previews: bool,
        negative: list[list[Any]] | None = None,
        latent: dict[str, Any] | None = None,
        loras: tuple[tuple[Any, float], ...] = (),
        **settings: Any,
    ) -> io.NodeOutput:
        """Generate an image for each latent of the batch, or one."""
        import torch

        from hidream.errors import InvalidInput
        from hidream.types import SEED_MAX

        if latent is None and settings["strength"] != 1.0:
            raise InvalidInput(
                f"strength is {settings['strength']:g}, and no latent is connected; accepted: 1, or a latent",
                field="strength",
            )
        model: Model = hidream.load()
        size = _size(model, width, height, latent)
        starts = [None] if latent is None else init_latents(model, latent)
        used = [(hidream.lora(path), weight) for path, weight in loras]
        texts = (encode.text_of(positive), "" if negative is None else encode.text_of(negative))
        finished = []
        for i, start in enumerate(starts):
            request = request_of(model, texts, size, (seed + i) % (SEED_MAX + 1), settings)
            embeds = _embeds(model, request, positive, negative)
            finished.append(_generate(hidream, model, request, embeds, start, used, previews))
        latents, images, details = zip(*finished, strict=True)
        return io.NodeOutput({"samples": torch.cat(latents)}, torch.stack(images), list(details))


def request_of(
    model: Model, texts: tuple[str, str], size: tuple[int, int], seed: int, settings: dict[str, Any]
) -> ImageRequest:
    """Read the widgets into a request, with all checks of hidream's library. Raises InvalidInput or PromptRefused."""
    from hidream.library.requests import Reader

    prompt, negative = texts
    options: dict[str, Any] = {
        "size": size,
        "seed": seed,
        "strength": settings["strength"],
        "mode": settings["mode"],
        "render": settings["render"],
        "negative_prompt": negative or None,
        "num_inference_steps": settings["steps"] or None,
        "guidance_scale": None if settings["guidance"] < 0 else settings["guidance"],
        "shift": settings["shift"] or None,
        "sampler": None if settings["sampler"] == PRESET else settings["sampler"],
        "enable_safety_checker": False,  # Encode HiDream prompt checks; here only what depends on both prompts
    }
    return Reader(model.variant).read(
        prompt or "-", {name: value for name, value in options.items() if value is not None}
    )


def _embeds(
    model: Model, request: ImageRequest, positive: list[list[Any]], negative: list[list[Any]] | None
) -> TextEmbeds:
    """Join the embeddings of the negative prompt, if there is guidance, and of the prompt."""
    import torch

    from hidream.errors import InvalidInput
    from hidream.model.pipeline import resolve
    from hidream.model.text.text_encoders import TextEmbeds

    own = encode.embeds_of("positive", positive)
    if resolve(model, request).guidance <= 1:
        if negative is not None:
            raise InvalidInput(
                "negative is connected, and without guidance above 1 it is not used; accepted: guidance above 1 with "
                "a full model, or nothing connected",
                field="negative",
            )
        parts = [own]
    elif negative is not None:
        parts = [encode.embeds_of("negative", negative), own]
    else:
        parts = [model.text.embed([""]).embeds, own]
    shapes = {tuple(each.llama.shape[2:]) + tuple(each.t5.shape[1:]) for each in parts}
    if len(shapes) > 1:
        raise InvalidInput(
            f"negative and positive have other lengths: {shapes}; accepted: equal ones", field="negative"
        )
    device = model.device
    t5, pooled = (torch.cat([getattr(each, name).to(device) for each in parts]) for name in ("t5", "pooled"))
    return TextEmbeds(t5=t5, llama=torch.cat([each.llama.to(device) for each in parts], dim=1), pooled=pooled)


def _generate(
    hidream: Any,
    model: Model,
    request: ImageRequest,
    embeds: TextEmbeds,
    start: InitLatent | None,
    loras: list[tuple[Any, float]],
    previews: bool,
) -> tuple[torch.Tensor, torch.Tensor, Details]:
    """Generate one image: its latent [1, C, h, w] in ComfyUI's scale, its pixels [H, W, 3] in 0 to 1, its details."""
    import torch
    from comfy.model_management import throw_exception_if_processing_interrupted
    from comfy.utils import ProgressBar

    from hidream.model.pipeline import finish, generate_latent, prepare
    from hidream.outputs.encode import pil_image

    prepared = prepare(model, request, start, loras)
    bar = ProgressBar(prepared.steps)
    shown = hidream.preview() if previews else None

    def after_step(done: int, x0: torch.Tensor) -> None:
        throw_exception_if_processing_interrupted()
        preview = None if shown is None else ("JPEG", pil_image(shown.render(x0)), PREVIEW_PX)
        bar.update_absolute(done, prepared.steps, preview)

    throw_exception_if_processing_interrupted()
    x0 = generate_latent(model, prepared, embeds, after_step)
    pixels = torch.from_numpy(finish(model, prepared, x0)).float() / 255
    details = Details(request.seed, model.version_of(request.mode), prepared.warnings)
    return unscaled(model, x0).cpu(), pixels, details


def unscaled(model: Model, latent: torch.Tensor) -> torch.Tensor:
    """Turn the transformer's latent into ComfyUI's."""
    return latent / model.vae.scaling + model.vae.shift


def scaled(model: Model, latent: torch.Tensor) -> torch.Tensor:
    """Turn ComfyUI's latent into the transformer's, float32."""
    return (latent.float() - model.vae.shift) * model.vae.scaling


def init_latents(model: Model, latent: dict[str, Any]) -> list[InitLatent]:
    """Read a LATENT: one start for each of its batch, with the noise mask as what may change. Raises InvalidInput."""
    import torch

    from hidream.errors import InvalidInput
    from hidream.model.latents.init_latent import InitLatent

    samples, mask = latent["samples"], latent.get("noise_mask")
    channels = model.transformer.config.in_channels
    if samples.ndim != 4 or samples.shape[1] != channels:
        raise InvalidInput(
            f"latent has the shape {list(samples.shape)}; accepted: [batch, {channels}, height, width], from this "
            "model's autoencoder",
            field="latent",
        )
    empty = torch.count_nonzero(samples) == 0
    values = torch.zeros_like(samples) if empty else scaled(model, samples)  # as ComfyUI does with empty latents
    masks = [None] * len(samples)
    if mask is not None:
        mask = mask.reshape(-1, 1, *mask.shape[-2:])
        masks = [mask[i % len(mask)].round() for i in range(len(samples))]
    return [InitLatent(value[None], each) for value, each in zip(values.float(), masks, strict=True)]


def _size(model: Model, width: int, height: int, latent: dict[str, Any] | None) -> tuple[int, int]:
    """Settle the size of the image. Raises InvalidInput where it is not said, or the latent has another shape."""
    from hidream.errors import InvalidInput

    if latent is None:
        if not (width and height):
            raise InvalidInput(
                "width or height is 0, and no latent is connected; accepted: both above 0", field="width"
            )
        return width, height
    rows, columns = latent["samples"].shape[-2:]
    own = (columns * model.vae.factor, rows * model.vae.factor)
    if width == height == 0:
        return own
    if abs(width * own[1] - height * own[0]) > max(own) * model.token_px:
        raise InvalidInput(
            f"width x height is {width}x{height}, and the latent is one of {own[0]}x{own[1]} pixels; accepted: the "
            "same shape, in any size, or 0 x 0 for its own",
            field="width",
        )
    return width, height
