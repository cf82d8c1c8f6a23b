"""The request parameters of both API versions: what is accepted, what is assumed, what each error says.

A JSON null means that the parameter is absent, and names that are not known are passed over, because clients
send both. Whatever else is wrong is an error that names the parameter, the value and what is accepted.

v2 knows what its documents have; v3 also takes what may be said about how the picture is drawn. Clients made for
other models send `guidance_scale` and `negative_prompt` by themselves: a variant that was distilled passes over them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from hidream.errors import InvalidInput, MissingInput
from hidream.store.submission import Submission
from hidream.types import (
    GUIDANCE_MAX,
    LORA_WEIGHT_MAX,
    LORAS_MAX,
    PROMPT_MAX_CHARS,
    SEED_MAX,
    SHIFT_MAX,
    SHIFT_MIN,
    SIDE_MAX_PX,
    STEPS_MAX,
    Conformance,
    ImageFormat,
    LoraUse,
    Mode,
    Render,
    Sampler,
    Size,
    Variant,
)

T = TypeVar("T")
Choice = TypeVar("Choice", bound=StrEnum)

RANDOM_SEEDS = 2**31
"""Seeds that are drawn here are below this, where v3's documents end: any client can send them again."""

DEFAULT_SIZE = Size(1024, 1024)
FORMATS = {
    "png": ImageFormat.PNG,
    "jpeg": ImageFormat.JPEG,
    "jpg": ImageFormat.JPEG,
    "webp": ImageFormat.WEBP,
}

_LORA = '{"name": ..., "scale": 1}'
_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
"""What JSON can write but no UTF-8 file or PostgreSQL text can hold."""


@dataclass(frozen=True, slots=True)
class Api:
    """A version of the API: its name in paths, and all in which it differs from the other."""

    name: str
    smallest_px: int
    base64_output: bool
    output_format: ImageFormat
    extras: bool


V2 = Api("v2", smallest_px=512, base64_output=True, output_format=ImageFormat.PNG, extras=False)
V3 = Api("v3", smallest_px=256, base64_output=False, output_format=ImageFormat.JPEG, extras=True)


def parse(body: dict[str, Any], api: Api, variant: Variant) -> Submission:
    """Read a request's JSON object. Raises InvalidInput, or MissingInput without a prompt."""
    given = {name: value for name, value in body.items() if value is not None}
    return Submission(
        prompt=_prompt(given),
        size=_size(given, api.smallest_px),
        seed=_seed(given),
        enable_base64_output=_flag(given, "enable_base64_output", api.base64_output),
        enable_safety_checker=_flag(given, "enable_safety_checker", True),
        enable_sync_mode=_flag(given, "enable_sync_mode", False),
        output_format=_output_format(given, api.output_format),
        **(_extras(given, variant) if api.extras else {}),
    )


def _extras(given: dict[str, Any], variant: Variant) -> dict[str, Any]:
    """Read what goes beyond the documents; in these an empty text means absent, as it does in forms."""
    given = {name: value for name, value in given.items() if value != ""}
    guided = {
        "guidance_scale": _optional(given, "guidance_scale", _number, 0, GUIDANCE_MAX),
        "negative_prompt": _negative_prompt(given),
    }
    extras = {
        "num_inference_steps": _optional(given, "num_inference_steps", _whole_number, 1, STEPS_MAX),
        "shift": _optional(given, "shift", _number, SHIFT_MIN, SHIFT_MAX),
        "sampler": _optional(given, "sampler", _choice, Sampler),
        "conformance": _choice("conformance", given.get("conformance", Conformance.DIFFUSERS), Conformance),
        "render": _choice("render", given.get("render", Render.BEST), Render),
        "mode": _choice("mode", given.get("mode", Mode.EXACT), Mode),
        "loras": _loras(given),
    }
    return extras | (guided if variant.guided else {})


def _prompt(given: dict[str, Any]) -> str:
    accepted = f"accepted: a text of 1 to {PROMPT_MAX_CHARS} characters"
    prompt = given.get("prompt")
    if prompt is None:
        raise MissingInput(f"prompt is absent; {accepted}")
    if isinstance(prompt, str) and not prompt.strip():
        raise MissingInput(f"prompt is empty; {accepted}")
    return _text("prompt", prompt, accepted)


def _negative_prompt(given: dict[str, Any]) -> str:
    return _text("negative_prompt", given.get("negative_prompt", ""), f"accepted: up to {PROMPT_MAX_CHARS} characters")


def _text(name: str, value: object, accepted: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{name} is {value!r:.100}; {accepted}")
    if len(value) > PROMPT_MAX_CHARS:
        raise InvalidInput(f"{name} has {len(value)} characters; {accepted}")
    if bad := _NO_CHARACTER.search(value):
        raise InvalidInput(f"{name} has {bad[0]!r} at {bad.start()}; {accepted}, no NUL and no lone surrogate")
    return value


def _size(given: dict[str, Any], smallest_px: int) -> Size:
    size = given.get("size")
    if isinstance(size, str):
        return Size.parse(size, smallest_px)
    if size is not None:
        raise InvalidInput(f"size is {size!r:.100}; accepted: a text such as {str(DEFAULT_SIZE)!r}")
    if "width" not in given and "height" not in given:
        return DEFAULT_SIZE
    return Size(*(_side(given, name, smallest_px) for name in ("width", "height")))


def _side(given: dict[str, Any], name: str, smallest_px: int) -> int:
    if name not in given:
        raise MissingInput(f"{name} is absent; accepted: width and height together, or size instead of both")
    return _whole_number(name, given[name], smallest_px, SIDE_MAX_PX)


def _seed(given: dict[str, Any]) -> int:
    seed = _whole_number("seed", given.get("seed", -1), -1, SEED_MAX)
    return secrets.randbelow(RANDOM_SEEDS) if seed == -1 else seed


def _flag(given: dict[str, Any], name: str, default: bool) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} is {value!r:.100}; accepted: true or false")
    return value


def _output_format(given: dict[str, Any], default: ImageFormat) -> ImageFormat:
    value = given.get("output_format", default)
    if not isinstance(value, str) or value not in FORMATS:
        raise InvalidInput(f"output_format is {value!r:.100}; accepted: {', '.join(FORMATS)}")
    return FORMATS[value]


def _loras(given: dict[str, Any]) -> tuple[LoraUse, ...]:
    """Read a list of {"name", "scale"}; WaveSpeed's clients write "path", and mean no file of ours by it."""
    loras = given.get("loras", [])
    if not isinstance(loras, list) or len(loras) > LORAS_MAX:
        seen = f"has {len(loras)} entries" if isinstance(loras, list) else f"is {loras!r:.100}"
        raise InvalidInput(f"loras {seen}; accepted: a list of up to {LORAS_MAX} objects {_LORA}")
    return tuple(_lora(f"loras[{i}]", value) for i, value in enumerate(loras))


def _lora(place: str, value: object) -> LoraUse:
    if not isinstance(value, dict):
        raise InvalidInput(f"{place} is {value!r:.100}; accepted: an object {_LORA}")
    name, scale = value.get("name") or value.get("path"), value.get("scale")
    if not name:
        raise MissingInput(f"{place} has no name; accepted: an object {_LORA}")
    return LoraUse(
        _text(f"{place}.name", name, "accepted: the name of a configured LoRA"),
        _number(f"{place}.scale", 1.0 if scale is None else scale, -LORA_WEIGHT_MAX, LORA_WEIGHT_MAX),
    )


def _optional(given: dict[str, Any], name: str, read: Callable[..., T], *limits: object) -> T | None:
    """Read a parameter without which the variant's own number is used."""
    return read(name, given[name], *limits) if name in given else None


def _choice(name: str, value: object, kind: type[Choice]) -> Choice:
    if not isinstance(value, str) or value not in list(kind):
        raise InvalidInput(f"{name} is {value!r:.100}; accepted: {', '.join(kind)}")
    return kind(value)


def _number(name: str, value: object, smallest: float, largest: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not smallest <= value <= largest:
        raise InvalidInput(f"{name} is {value!r:.100}; accepted: a number from {smallest:g} to {largest:g}")
    return float(value)


def _whole_number(name: str, value: object, smallest: int, largest: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise InvalidInput(f"{name} is {value!r:.100}; accepted: a whole number from {smallest} to {largest}")
    return value
