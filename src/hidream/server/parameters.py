"""The request parameters of both API versions: what is accepted, what is assumed, what each error says.

A JSON null means that the parameter is absent, and names that are not known are passed over, because clients
send both. Whatever else is wrong is an error that names the parameter, the value and what is accepted.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any

from hidream.errors import InvalidInput, MissingInput
from hidream.store.predictions import Submission
from hidream.types import PROMPT_MAX_CHARS, SEED_MAX, SIDE_MAX_PX, ImageFormat, Size

RANDOM_SEEDS = 2**31
"""Seeds that are drawn here are below this, where v3's documents end: any client can send them again."""

DEFAULT_SIZE = Size(1024, 1024)
FORMATS = {
    "png": ImageFormat.PNG,
    "jpeg": ImageFormat.JPEG,
    "jpg": ImageFormat.JPEG,
    "webp": ImageFormat.WEBP,
}

_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
"""What JSON can write but no UTF-8 file or PostgreSQL text can hold."""


@dataclass(frozen=True, slots=True)
class Api:
    """A version of the API: its name in paths, and all in which it differs from the other."""

    name: str
    smallest_px: int
    base64_output: bool
    output_format: ImageFormat


V2 = Api("v2", smallest_px=512, base64_output=True, output_format=ImageFormat.PNG)
V3 = Api("v3", smallest_px=256, base64_output=False, output_format=ImageFormat.JPEG)


def parse(body: dict[str, Any], api: Api) -> Submission:
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
    )


def _prompt(given: dict[str, Any]) -> str:
    accepted = f"accepted: a text of 1 to {PROMPT_MAX_CHARS} characters"
    prompt = given.get("prompt")
    if prompt is None:
        raise MissingInput(f"prompt is absent; {accepted}")
    if not isinstance(prompt, str):
        raise InvalidInput(f"prompt is {prompt!r:.100}; {accepted}")
    if not prompt.strip():
        raise MissingInput(f"prompt is empty; {accepted}")
    if len(prompt) > PROMPT_MAX_CHARS:
        raise InvalidInput(f"prompt has {len(prompt)} characters; {accepted}")
    if bad := _NO_CHARACTER.search(prompt):
        raise InvalidInput(f"prompt has {bad[0]!r} at {bad.start()}; {accepted}, no NUL and no lone surrogate")
    return prompt


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


def _whole_number(name: str, value: object, smallest: int, largest: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise InvalidInput(f"{name} is {value!r:.100}; accepted: a whole number from {smallest} to {largest}")
    return value
