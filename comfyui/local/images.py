"""Encode image for HiDream, Decode HiDream latent, and Save HiDream image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.v0_0_2 import io, ui

from .types import CATEGORY, HiDreamDetails, HiDreamModel

if TYPE_CHECKING:
    import torch

EXIF_MAX_BYTES = 60_000
"""Of a workflow in a file that is no PNG: JPEG's EXIF ends at 64 KiB."""


class EncodeImageHiDream(io.ComfyNode):
    """Encodes images with the model's own autoencoder, with a mask of what may change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            "HidreamEncodeImage",
            display_name="Encode image for HiDream",
            category=CATEGORY,
            description="The latent of an image, for image to image; with a mask for inpainting.",
            inputs=[
                HiDreamModel.Input("hidream"),
                io.Image.Input(
                    "image", tooltip="its sides are cut to whole tokens: multiples of 16 pixels, nano's of 32"
                ),
                io.Mask.Input("mask", optional=True, tooltip="of the size of the image; 1 where it may change"),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, hidream: Any, image: torch.Tensor, mask: torch.Tensor | None = None) -> io.NodeOutput:
        """Encode each image of the batch."""
        import torch

        from .sample import unscaled

        model = hidream.load()
        rows, columns = _whole_tokens(image, mask, model.token_px)
        planes = image[:, rows, columns, :3].movedim(-1, 1).float() * 2 - 1
        with torch.inference_mode(), model.phases.autoencoding():
            samples = [unscaled(model, model.vae.encode(each[None].to(model.device)).float()).cpu() for each in planes]
        latent = {"samples": torch.cat(samples)}
        if mask is not None:
            latent["noise_mask"] = mask.reshape(-1, *mask.shape[-2:])[:, rows, columns]
        return io.NodeOutput(latent)


def _whole_tokens(image: torch.Tensor, mask: torch.Tensor | None, token_px: int) -> tuple[slice, slice]:
    """Return the rows and columns of the middle of an image that are whole tokens. Raises InvalidInput."""
    from hidream.errors import InvalidInput

    height, width = image.shape[1:3]
    if mask is not None and tuple(mask.shape[-2:]) != (height, width):
        raise InvalidInput(
            f"mask has {mask.shape[-1]}x{mask.shape[-2]} pixels, and the image {width}x{height}; accepted: the same "
            "size",
            field="mask",
        )
    if min(height, width) < token_px:
        raise InvalidInput(f"image has {width}x{height} pixels; accepted: {token_px} or more a side", field="image")
    tops = [(side % token_px) // 2 for side in (height, width)]
    sides = [side - side % token_px for side in (height, width)]
    return slice(tops[0], tops[0] + sides[0]), slice(tops[1], tops[1] + sides[1])


class DecodeHiDream(io.ComfyNode):
    """Decodes latents with the model's own autoencoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            "HidreamDecode",
            display_name="Decode HiDream latent",
            category=CATEGORY,
            inputs=[
                HiDreamModel.Input("hidream"),
                io.Latent.Input("latent"),
                io.Int.Input(
                    "tile",
                    default=0,
                    min=0,
                    max=4096,
                    step=64,
                    tooltip="decode in tiles of this many pixels, for less memory; 0: as the memory plan has it",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, hidream: Any, latent: dict[str, Any], tile: int) -> io.NodeOutput:
        """Decode each latent of the batch."""
        import torch
        from comfy.model_management import throw_exception_if_processing_interrupted

        from hidream.model.latents.shape import to_pixels

        from .sample import scaled

        model = hidream.load()
        vae = dataclasses.replace(model.vae, tile_px=tile or model.vae.tile_px)
        images = []
        with torch.inference_mode(), model.phases.autoencoding():
            for sample in scaled(model, latent["samples"]):
                throw_exception_if_processing_interrupted()
                decoded = vae.decode(sample[None].to(model.device))[0]
                images.append(to_pixels(decoded).cpu().float() / 255)
        return io.NodeOutput(torch.stack(images))


class SaveHiDream(io.ComfyNode):
    """Writes images with seed and version of the model, and ComfyUI's workflow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            "HidreamSave",
            display_name="Save HiDream image",
            category=CATEGORY,
            description="Files that say how to generate their image again, and load as a workflow.",
            inputs=[
                io.Image.Input("images"),
                io.String.Input("filename_prefix", default="hidream"),
                io.Combo.Input("file_format", options=["png", "jpeg", "webp", "avif"], default="png"),
                io.Int.Input(
                    "quality", default=0, min=0, max=100, tooltip="0: what is best for most; png loses nothing"
                ),
                HiDreamDetails.Input("details", optional=True, tooltip="of Sample HiDream: seed and version"),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        filename_prefix: str,
        file_format: str,
        quality: int,
        details: list[Any] | None = None,
    ) -> io.NodeOutput:
        """Write a file for each image, named as ComfyUI names its own."""
        import folder_paths

        from hidream.errors import InvalidInput
        from hidream.outputs.encode import encode
        from hidream.types import ImageFormat

        if details is not None and len(details) != len(images):
            raise InvalidInput(
                f"details are of {len(details)} images, and images has {len(images)}; accepted: those of one node",
                field="details",
            )
        height, width = images.shape[1:3]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        kind, workflow = ImageFormat(file_format), workflow_of(cls.hidden)
        if kind is not ImageFormat.PNG and sum(map(len, workflow.values())) > EXIF_MAX_BYTES:
            raise InvalidInput(
                f"the workflow has {sum(map(len, workflow.values()))} characters; accepted in {file_format}: "
                f"{EXIF_MAX_BYTES}, or png",
                field="file_format",
            )
        saved = []
        for i, image in enumerate(images):
            about = details[i] if details is not None else None
            pixels = image.mul(255).round().clamp(0, 255).byte().cpu().numpy()
            data = encode(
                pixels,
                kind,
                seed=about.seed if about else None,
                version=about.version if about else None,
                output_quality=quality or None,
                workflow=workflow,
            )
            file = f"{name.replace('%batch_num%', str(i))}_{counter + i:05}_.{kind}"
            (Path(folder) / file).write_bytes(data)
            saved.append(ui.SavedResult(file, subfolder, io.FolderType.output))
        return io.NodeOutput(ui=ui.SavedImages(saved))


def workflow_of(hidden: Any) -> dict[str, str]:
    """Return ComfyUI's own texts by name, the prompt first; none if it was started with --disable-metadata."""
    from comfy.cli_args import args

    if args.disable_metadata or hidden is None:
        return {}
    texts = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {name: json.dumps(value) for name, value in texts.items() if value is not None}
