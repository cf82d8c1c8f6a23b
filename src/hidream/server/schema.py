"""The request parameters as a JSON schema, for those who ask what a model takes, and for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from hidream.server.parameters import FORMATS, QUALITY_MAX, Api
from hidream.types import (
    DEFAULT_SIZE,
    GUIDANCE_MAX,
    IMAGES_MAX,
    LORA_WEIGHT_MAX,
    LORAS_MAX,
    PROMPT_MAX_CHARS,
    SEED_MAX,
    SHIFT_MAX,
    SHIFT_MIN,
    STEPS_MAX,
    STRENGTH,
    STRENGTH_MIN,
    Conformance,
    Mode,
    Render,
    Sampler,
    Status,
    Variant,
)

Schema = dict[str, Any]

SHOWN = [status for status in Status if status is not Status.DELETED]
"""States that an answer may tell."""


def submission(api: Api, variant: Variant) -> Schema:
    """Describe what a model takes in a version of the API; what it passes over is not named."""
    properties = _documented(api) | (_extras(api) if api.extras else {})
    if variant.guided and api.extras:
        properties |= _guided()
    return {
        "type": "object",
        "properties": properties,
        "required": ["prompt"],
        "x-order-properties": list(properties),
    }


def listing() -> Schema:
    """Describe what the list of one's tasks takes."""
    moment = {"anyOf": [{"type": "string", "format": "date-time"}, {"enum": ["", None]}]}
    properties = {
        "page": {"type": ["integer", "null"], "minimum": 1, "maximum": 1_000_000_000},
        "page_size": {"type": ["integer", "null"], "minimum": 1, "maximum": 100},
        "created_after": moment,
        "created_before": moment,
        "model": {"type": ["string", "null"]},
        "status": {"enum": [*SHOWN, "", None]},
        "include_inputs": {"type": ["boolean", "null"]},
    }
    return {"type": "object", "properties": properties}


def _documented(api: Api) -> dict[str, Schema]:
    return {
        "prompt": _text("What to draw.", minLength=1, maxLength=PROMPT_MAX_CHARS),
        "size": _text(
            f"Width*height in pixels, each {api.smallest_px} to {api.largest_px}.",
            default=str(DEFAULT_SIZE),
            pattern=r"^[0-9]{1,6}[*xX][0-9]{1,6}$",
        ),
        "seed": _whole("Same seed, same picture; -1 draws one.", -1, SEED_MAX, default=-1),
        "enable_base64_output": _flag("Outputs are base64 instead of URLs.", api.base64_output),
        "enable_safety_checker": _flag("Refuse prompts that ask for what should not be drawn.", True),
        "enable_sync_mode": _flag("Answer when the picture is done.", False),
        "output_format": _choice("The files' format.", FORMATS, default=api.output_format),
        "webhook": _text("A URL that is told the task's end."),
        "webhook_url": _text("The same."),
    } | _sides(api)


def _sides(api: Api) -> dict[str, Schema]:
    return {
        "width": _whole("With height, instead of a size.", api.smallest_px, api.largest_px),
        "height": _whole("With width, instead of a size.", api.smallest_px, api.largest_px),
    }


def _extras(api: Api) -> dict[str, Schema]:
    lora = {
        "type": "object",
        "properties": {
            "name": _text("A configured LoRA.", minLength=1),
            "path": _text("The same."),
            "scale": _number("How strongly.", -LORA_WEIGHT_MAX, LORA_WEIGHT_MAX, default=1),
        },
        "anyOf": [{"required": ["name"]}, {"required": ["path"]}],
    }
    return {
        "num_images": _whole("How many pictures, of seed, seed + 1, and so on.", 1, IMAGES_MAX, default=1),
        "output_quality": _whole("Of JPEG and WebP files.", 1, QUALITY_MAX),
        "aspect_ratio": _text("W:H instead of a size.", pattern=r"^([0-9]{1,4}:[0-9]{1,4}|auto)$", default="auto"),
        "target_size": {
            "type": "object",
            "properties": _sides(api),
            "required": ["width", "height"],
            "description": "Width and height, as Hugging Face's clients say them.",
        },
        "image": _text("A picture to start from: a URL, a data: URI, base64, or an upload's download_url."),
        "strength": _number("How much of it may change.", STRENGTH_MIN, 1, default=STRENGTH),
        "mask": _text("Likewise an image of equal size, white where the image may change, or transparent."),
        "num_inference_steps": _whole("Steps; absent, the model's own.", 1, STEPS_MAX),
        "shift": _number("Shift of the noise levels; absent, the model's own.", SHIFT_MIN, SHIFT_MAX),
        "sampler": _choice("How noise becomes a picture.", Sampler),
        "conformance": _choice("Whose schedule.", Conformance, default=Conformance.DIFFUSERS),
        "render": _choice("Which shape the model itself draws.", Render, default=Render.BEST),
        "mode": _choice("What may be lost for speed.", Mode, default=Mode.EXACT),
        "loras": {"type": "array", "items": lora, "maxItems": LORAS_MAX, "description": "LoRAs to apply."},
    }


def _guided() -> dict[str, Schema]:
    return {
        "negative_prompt": _text("What not to draw.", maxLength=PROMPT_MAX_CHARS),
        "guidance_scale": _number("How closely to follow the prompt; absent, the model's own.", 0, GUIDANCE_MAX),
    }


def _text(description: str, **more: object) -> Schema:
    return {"type": "string", "description": description, **more}


def _flag(description: str, default: bool) -> Schema:
    return {"type": "boolean", "description": description, "default": default}


def _choice(description: str, choices: object, **more: object) -> Schema:
    return {"type": "string", "description": description, "enum": [str(each) for each in choices], **more}  # type: ignore[attr-defined]


def _whole(description: str, smallest: int, largest: int, **more: object) -> Schema:
    return {"type": "integer", "description": description, "minimum": smallest, "maximum": largest, **more}


def _number(description: str, smallest: float, largest: float, **more: object) -> Schema:
    return {"type": "number", "description": description, "minimum": smallest, "maximum": largest, **more}
