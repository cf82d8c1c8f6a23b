"""The request parameters of both API versions: what is accepted, what is assumed, what each error says.

A JSON null means that the parameter is absent, and names that are not known are no error, because clients send both;
`unused` tells of those. Whatever else is wrong is an error that names the parameter, the value and what is accepted.

v2 knows what its documents have; v3 also takes what may be said about how the picture is drawn, and there an empty text
means absent too. Clients made for other models send `guidance_scale` and `negative_prompt` by themselves: a variant
that was distilled does not use them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from math import sqrt
from typing import Any, TypeVar

from hidream.errors import InvalidInput, MissingInput
from hidream.server.long_text import LongText
from hidream.store.submission import Submission
from hidream.types import (
    DEFAULT_SIZE,
    GUIDANCE_MAX,
    IMAGES_MAX,
    LORA_WEIGHT_MAX,
    LORAS_MAX,
    PROMPT_MAX_CHARS,
    ROUND_PX,
    SEED_MAX,
    SHIFT_MAX,
    SHIFT_MIN,
    SIDE_MAX_PX,
    SIDE_MIN_PX,
    STEPS_MAX,
    STRENGTH,
    STRENGTH_MIN,
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

DOCUMENTED_MIN_PX, DOCUMENTED_MAX_PX = 512, 1536
"""Sides in v2's documents."""
RATIO_MAX = DOCUMENTED_MAX_PX // SIDE_MIN_PX
"""Of an aspect_ratio, which gives no side beyond what is documented."""
FORMATS = {
    "png": ImageFormat.PNG,
    "jpeg": ImageFormat.JPEG,
    "jpg": ImageFormat.JPEG,
    "webp": ImageFormat.WEBP,
}

QUALITY_MAX = 100
NO_BASE64 = "webhook callback does not support base64 output, please use the normal API to use base64 output"
"""WaveSpeed's own sentence (documentation, page "base64-output")."""

_SIZES = ("size", "width", "height", "target_size", "aspect_ratio")
_LORA = '{"name": ..., "scale": 1}'
_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
"""What JSON can write but no UTF-8 file or PostgreSQL text can hold."""

_IDEMPOTENCY_KEY = re.compile(r"[ -~]{1,255}")


@dataclass(frozen=True, slots=True)
class Api:
    """A version of the API: its name in paths, and all in which it differs from the other."""

    name: str
    smallest_px: int
    largest_px: int
    base64_output: bool
    output_format: ImageFormat
    extras: bool


V2 = Api("v2", DOCUMENTED_MIN_PX, DOCUMENTED_MAX_PX, base64_output=True, output_format=ImageFormat.PNG, extras=False)
V3 = Api("v3", SIDE_MIN_PX, SIDE_MAX_PX, base64_output=False, output_format=ImageFormat.JPEG, extras=True)


def parse(body: dict[str, Any], api: Api, variant: Variant) -> Submission:
    """Read a request's JSON object, but for what `sources` and `webhook` read.

    Raises InvalidInput, or MissingInput without a prompt.
    """
    given = _given(body, api)
    return Submission(
        prompt=_prompt(given),
        size=_size(given, api),
        seed=_seed(given),
        enable_base64_output=flag(given, "enable_base64_output", api.base64_output),
        enable_safety_checker=flag(given, "enable_safety_checker", True),
        enable_sync_mode=flag(given, "enable_sync_mode", False),
        output_format=_output_format(given, api.output_format),
        **(_extras(given, variant) if api.extras else {}),
    )


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the image to start from is, and the mask, as the request has them; `sizes` if it decides the size."""

    image: str | LongText | None
    mask: str | LongText | None
    sizes: bool = False


def sources(body: dict[str, Any], api: Api) -> Sources:
    """Read which pictures a request brings. Raises InvalidInput, or MissingInput for a mask alone."""
    given = _given(body, api)
    if not api.extras:
        return Sources(None, None)
    image, mask = (_optional(given, name, _source) for name in ("image", "mask"))
    if mask is not None and image is None:
        raise MissingInput("mask is given without an image; accepted: a mask of the image to change")
    said = {name for name in given if given[name] != "auto"}
    return Sources(image, mask, image is not None and said.isdisjoint(_SIZES))


def webhook(body: dict[str, Any], query: Mapping[str, str]) -> str:
    """Read where the task's end is to be told, from the query or the body; empty: nowhere. Raises InvalidInput.

    Whether such a URL may be called, `webhooks/targets` says.
    """
    for url in (query.get("webhook"), body.get("webhook"), body.get("webhook_url")):
        if url is not None and not isinstance(url, str):
            raise InvalidInput(f"webhook is {url!r:.100}; accepted: the text of a URL")
        if url:
            return url
    return ""


def with_webhook(submission: Submission, body: dict[str, Any]) -> Submission:
    """Settle what a webhook excludes. Raises InvalidInput on what was asked for by name."""
    if body.get("enable_base64_output") is True:
        raise InvalidInput(NO_BASE64)
    if submission.enable_sync_mode:
        raise InvalidInput("enable_sync_mode is True beside a webhook; accepted: one of the two")
    return replace(submission, enable_base64_output=False)


def idempotency_key(text: str | None) -> str | None:
    """Read the header. Raises InvalidInput."""
    if text is not None and not _IDEMPOTENCY_KEY.fullmatch(text):
        raise InvalidInput(f"Idempotency-Key is {text!r:.100}; accepted: 1 to 255 printable ASCII characters")
    return text


def moment(name: str, value: object) -> int | None:
    """Read a time in ISO 8601, in UTC if it does not say otherwise, as ms since the epoch. Raises InvalidInput."""
    if value is None or value == "":
        return None
    accepted = "accepted: a time such as 2026-11-22T18:00:00.000Z"
    if not isinstance(value, str):
        raise InvalidInput(f"{name} is {value!r:.100}; {accepted}")
    try:
        read = datetime.fromisoformat(value.strip())
        return round((read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{name} is {value!r:.100}; {accepted}") from error


def _given(body: dict[str, Any], api: Api) -> dict[str, Any]:
    """What the request says: nulls are absent, and on v3 empty texts are, as they are in forms."""
    given = {name: value for name, value in body.items() if value is not None}
    return {name: value for name, value in given.items() if value != "" or name == "prompt"} if api.extras else given


def _extras(given: dict[str, Any], variant: Variant) -> dict[str, Any]:
    """Read what goes beyond v2's documents."""
    guided = {
        "guidance_scale": _optional(given, "guidance_scale", _number, 0, GUIDANCE_MAX),
        "negative_prompt": _negative_prompt(given),
    }
    extras = {
        "num_inference_steps": _optional(given, "num_inference_steps", whole_number, 1, STEPS_MAX),
        "shift": _optional(given, "shift", _number, SHIFT_MIN, SHIFT_MAX),
        "sampler": _optional(given, "sampler", _choice, Sampler),
        "conformance": _choice("conformance", given.get("conformance", Conformance.DIFFUSERS), Conformance),
        "render": _choice("render", given.get("render", Render.BEST), Render),
        "mode": _choice("mode", given.get("mode", Mode.EXACT), Mode),
        "loras": _loras(given),
        "num_images": whole_number("num_images", given.get("num_images", 1), 1, IMAGES_MAX),
        "output_quality": _optional(given, "output_quality", whole_number, 1, QUALITY_MAX),
        "strength": _number("strength", given.get("strength", STRENGTH), STRENGTH_MIN, 1),
    }
    return extras | (guided if variant.guided else {})


def _prompt(given: dict[str, Any]) -> str:
    accepted = f"accepted: a text of 1 to {PROMPT_MAX_CHARS} characters"
    prompt = given.get("prompt")
    if prompt is None:
        raise MissingInput(f"prompt is absent; {accepted}")
    if isinstance(prompt, str) and not prompt.strip():
        raise MissingInput(f"prompt is empty; {accepted}")
    return text("prompt", prompt, accepted)


def _negative_prompt(given: dict[str, Any]) -> str:
    return text("negative_prompt", given.get("negative_prompt", ""), f"accepted: up to {PROMPT_MAX_CHARS} characters")


def text(name: str, value: object, accepted: str) -> str:
    """Read a text that a file and a database can hold. Raises InvalidInput."""
    if isinstance(value, LongText):
        raise InvalidInput(f"{name} has {value.size} characters; {accepted}")
    if not isinstance(value, str):
        raise InvalidInput(f"{name} is {value!r:.100}; {accepted}")
    if len(value) > PROMPT_MAX_CHARS:
        raise InvalidInput(f"{name} has {len(value)} characters; {accepted}")
    if bad := _NO_CHARACTER.search(value):
        raise InvalidInput(f"{name} has {bad[0]!r} at {bad.start()}; {accepted}, no NUL and no lone surrogate")
    return value


def _source(name: str, value: object) -> str | LongText:
    if isinstance(value, LongText):
        return value
    if not isinstance(value, str):
        raise InvalidInput(f"{name} is {value!r:.100}; accepted: the text of a URL, a data: URI or base64")
    return value.strip()


def _size(given: dict[str, Any], api: Api) -> Size:
    """Read the size from what says it most exactly; what says it otherwise is looked at all the same."""
    by_ratio = ratio_size(given.get("aspect_ratio", "auto")) if api.extras else DEFAULT_SIZE
    by_target = _target_size(given["target_size"], api) if api.extras and "target_size" in given else None
    size = given.get("size")
    if isinstance(size, str):
        return Size.parse(size, api.smallest_px, api.largest_px)
    if size is not None:
        raise InvalidInput(f"size is {size!r:.100}; accepted: a text such as {str(DEFAULT_SIZE)!r}")
    if "width" not in given and "height" not in given:
        return by_target or by_ratio
    return _of_sides(given, api)


def _target_size(value: object, api: Api) -> Size:
    """Read the size as huggingface_hub and @huggingface/inference say it."""
    if not isinstance(value, dict):
        raise InvalidInput(f'target_size is {value!r:.100}; accepted: an object {{"width": ..., "height": ...}}')
    return _of_sides(value, api, "target_size.")


def ratio_size(value: object) -> Size:
    """Give a size of about DEFAULT_SIZE's area, or less where a side would be too long. Raises InvalidInput."""
    ratio = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", value.strip()) if isinstance(value, str) else None
    if value == "auto":
        return DEFAULT_SIZE
    across, down = (int(ratio[1]), int(ratio[2])) if ratio else (0, 0)
    if not across or not down or max(across, down) > RATIO_MAX * min(across, down):
        raise InvalidInput(
            f"aspect_ratio is {value!r:.100}; accepted: W:H in whole numbers, "
            f"from 1:{RATIO_MAX} to {RATIO_MAX}:1, or auto"
        )
    longest = DOCUMENTED_MAX_PX / max(across, down)
    scale = min(sqrt(DEFAULT_SIZE.width * DEFAULT_SIZE.height / (across * down)), longest)
    return Size(*(max(SIDE_MIN_PX, round(side * scale / ROUND_PX) * ROUND_PX) for side in (across, down)))


def _of_sides(given: dict[str, Any], api: Api, place: str = "") -> Size:
    width, height = (_side(given, name, api, place) for name in ("width", "height"))
    return Size(width, height)


def _side(given: dict[str, Any], name: str, api: Api, place: str) -> int:
    if given.get(name) is None:
        raise MissingInput(f"{place}{name} is absent; accepted: width and height together, or size instead of both")
    return whole_number(f"{place}{name}", given[name], api.smallest_px, api.largest_px)


def _seed(given: dict[str, Any]) -> int:
    seed = whole_number("seed", given.get("seed", -1), -1, SEED_MAX)
    return secrets.randbelow(RANDOM_SEEDS) if seed == -1 else seed


def flag(given: dict[str, Any], name: str, default: bool) -> bool:
    """Read true or false. Raises InvalidInput."""
    value = default if given.get(name) is None else given[name]
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
        text(f"{place}.name", name, "accepted: the name of a configured LoRA"),
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


def whole_number(name: str, value: object, smallest: int, largest: int) -> int:
    """Read a whole number, 7.0 included. Raises InvalidInput."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise InvalidInput(f"{name} is {value!r:.100}; accepted: a whole number from {smallest} to {largest}")
    return value
