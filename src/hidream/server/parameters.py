"""Parse a request's JSON object into an ImageRequest, in each version of the API.

`request.py` declares the parameters. This file adds what exists only in the HTTP API: other ways to give the size,
webhooks, and the defaults and limits of each version. A JSON null means that the parameter is absent. Unknown names are
not errors, because clients send them; `unused` warns of them. Anything else that is wrong is an error that names the
parameter, the value and what is accepted.

v2 has the parameters of WaveSpeed's documents. v3 also has parameters that control how the image is generated; there,
an empty text also means that the parameter is absent. Clients made for other models always send `guidance_scale` and
`negative_prompt`, so a distilled variant accepts them without using them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import sqrt
from typing import Any, cast

from hidream.errors import InvalidInput, MissingInput
from hidream.parameter import Boolean, Integer, Kind, Parameter, PlainJson, Schema, Text, by_name, refused
from hidream.request import BY_NAME, MASK_ALONE, PARAMETERS, Dimensions, ImageRequest, random_seed
from hidream.server.bodies.long_text import LongText
from hidream.types import (
    DEFAULT_SIZE,
    PROMPT_MAX_CHARS,
    ROUND_PX,
    SIDE_MAX_PX,
    SIDE_MIN_PX,
    ImageFormat,
    Size,
    Variant,
)

DOCUMENTED_MIN_PX, DOCUMENTED_MAX_PX = 512, 1536
"""The range of a side in WaveSpeed's documents."""
RATIO_MAX = DOCUMENTED_MAX_PX // SIDE_MIN_PX
"""The largest aspect_ratio: it gives no side beyond the documented range."""

NO_BASE64 = "webhook callback does not support base64 output, please use the normal API to use base64 output"
"""WaveSpeed's own text (documentation, page "base64-output")."""

_SIZES = ("size", "width", "height", "target_size", "aspect_ratio")
_IDEMPOTENCY_KEY = re.compile(r"[ -~]{1,255}")


@dataclass(frozen=True, slots=True)
class Ratio(PlainJson):
    """An aspect as "W:H", or "auto" for DEFAULT_SIZE's."""

    @property
    def accepted(self) -> str:
        """The form and the range."""
        return f"W:H in whole numbers, from 1:{RATIO_MAX} to {RATIO_MAX}:1, or auto"

    def read(self, field: str, value: object) -> Size:
        """Return a size of about DEFAULT_SIZE's area, or less if a side would be too long. Raises InvalidInput."""
        ratio = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", value.strip()) if isinstance(value, str) else None
        if value == "auto":
            return DEFAULT_SIZE
        across, down = (int(ratio[1]), int(ratio[2])) if ratio else (0, 0)
        if not across or not down or max(across, down) > RATIO_MAX * min(across, down):
            raise refused(field, value, self.accepted)
        longest = DOCUMENTED_MAX_PX / max(across, down)
        scale = min(sqrt(DEFAULT_SIZE.width * DEFAULT_SIZE.height / (across * down)), longest)
        return Size(*(max(SIDE_MIN_PX, round(side * scale / ROUND_PX) * ROUND_PX) for side in (across, down)))

    def schema(self) -> Schema:
        """Describe it."""
        return {"type": "string", "pattern": r"^([0-9]{1,4}:[0-9]{1,4}|auto)$"}


@dataclass(frozen=True, slots=True)
class Sides(PlainJson):
    """An object with width and height. Errors name a side with the parameter's name and a dot before it."""

    side: Integer

    @property
    def accepted(self) -> str:
        """The form."""
        return 'an object {"width": ..., "height": ...}'

    def read(self, field: str, value: object) -> Size:
        """Read a size. Raises InvalidInput, or MissingInput if a side is absent."""
        if not isinstance(value, dict):
            raise refused(field, value, self.accepted)
        return of_sides(value, self.side, self.side, f"{field}.")

    def schema(self) -> Schema:
        """Describe it."""
        sides = {row.name: row.schema(self.side) for row in (_WIDTH, _HEIGHT)}
        return {"type": "object", "properties": sides, "required": list(sides)}


@dataclass(frozen=True, slots=True)
class Url(PlainJson):
    """A webhook's URL. `outbound/targets` decides whether it may be requested."""

    @property
    def accepted(self) -> str:
        """The type."""
        return "the text of a URL"

    def read(self, field: str, value: object) -> str:
        """Read a text. Raises InvalidInput."""
        if not isinstance(value, str):
            raise refused(field, value, self.accepted)
        return value

    def schema(self) -> Schema:
        """Describe it."""
        return {"type": "string"}


_SIDE = Integer(SIDE_MIN_PX, SIDE_MAX_PX)
_WIDTH = Parameter(_SIDE, "With height, instead of a size.", name="width", documented=True, notes="instead of `size`")
_HEIGHT = Parameter(_SIDE, "With width, instead of a size.", name="height", documented=True, notes="instead of `size`")
_BESIDE: Mapping[str, tuple[Parameter, ...]] = {
    "output_format": (
        Parameter(
            Url(),
            "A URL that receives the result when the task ends.",
            name="webhook",
            documented=True,
            notes="it receives the result when the task ends ([WEBHOOKS.md](WEBHOOKS.md)); also `?webhook=`",
        ),
        Parameter(
            Url(), "Another name of `webhook`.", name="webhook_url", documented=True, notes="another name of `webhook`"
        ),
        _WIDTH,
        _HEIGHT,
    ),
    "output_quality": (
        Parameter(
            Ratio(),
            "An aspect ratio W:H, instead of a size.",
            name="aspect_ratio",
            default="auto",
            notes="used if no other parameter gives the size: about one megapixel, no side above 1536",
        ),
        Parameter(
            Sides(_SIDE),
            "Width and height in the form of Hugging Face's clients.",
            name="target_size",
            notes="the form of Hugging Face's clients for width and height",
        ),
    ),
}
"""Parameters that exist only in the HTTP API, by the parameter that they follow in the documents."""
WIRE = tuple(each for parameter in PARAMETERS for each in (parameter, *_BESIDE.get(parameter.name, ())))
"""All parameters of the API, in the order of the documents."""
_WIRE = by_name(WIRE)
_READ_SEPARATELY = ("size", "image", "mask")
"""The parameters that `_size` and `sources` read."""

Read = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Api:
    """A version of the API: its name in paths, and how it differs from the others.

    `defaults` and `kinds` replace the declared ones. With `extras`, it has the parameters that are not in v2.
    """

    name: str
    extras: bool
    defaults: Mapping[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    readers: tuple[tuple[str, str, Read, bool], ...] = field(init=False)
    """For each parameter except _READ_SEPARATELY: name, field, reader, and whether only guided variants use it."""

    def __post_init__(self) -> None:
        readers = tuple(
            (each.name, each.attribute, self.kind(each.name).read, each.guided)
            for each in PARAMETERS
            if (each.documented or self.extras) and each.name not in _READ_SEPARATELY
        )
        object.__setattr__(self, "readers", readers)

    def kind(self, name: str) -> Any:  # noqa: ANN401 - each parameter has its own
        """Return the type of a parameter."""
        return self.kinds.get(name) or _WIRE[name].kind

    def parameters(self, variant: Variant) -> list[Parameter]:
        """List the parameters that a model uses in this version."""
        return [each for each in WIRE if (each.documented or self.extras) and (variant.guided or not each.guided)]


V2 = Api(
    "v2",
    extras=False,
    defaults={"enable_base64_output": True},
    kinds={
        "size": Dimensions(DOCUMENTED_MIN_PX, DOCUMENTED_MAX_PX),
        "width": Integer(DOCUMENTED_MIN_PX, DOCUMENTED_MAX_PX),
        "height": Integer(DOCUMENTED_MIN_PX, DOCUMENTED_MAX_PX),
    },
)
V3 = Api("v3", extras=True, defaults={"output_format": ImageFormat.JPEG})


def parse(body: dict[str, Any], api: Api, variant: Variant) -> ImageRequest:
    """Read a request's JSON object, except for what `sources` and `webhook` read.

    Raises InvalidInput, or MissingInput if there is no prompt.
    """
    given = _given(body, api)
    if "prompt" not in given:
        raise MissingInput(f"prompt is absent; accepted: {BY_NAME['prompt'].kind.accepted}", field="prompt")
    values: dict[str, Any] = {**api.defaults}
    for name, attribute, read, guided in api.readers:
        if name in given:
            value = read(name, given[name])
            if not guided or variant.guided:
                values[attribute] = value
    values["size"] = _size(given, api)
    if values.get("seed", -1) == -1:
        values["seed"] = random_seed()
    return ImageRequest(**values)


@dataclass(frozen=True, slots=True)
class Sources:
    """The init image and the mask as the request gives them; `sizes` if the image determines the output's size."""

    image: str | LongText | None
    mask: str | LongText | None
    sizes: bool = False


def sources(body: dict[str, Any], api: Api) -> Sources:
    """Read the init image and the mask of a request. Raises InvalidInput, or MissingInput for a mask without an image.

    Nothing is fetched or decoded here.
    """
    if not api.extras or ("image" not in body and "mask" not in body):
        return Sources(None, None)
    given = _given(body, api)
    image, mask = (
        cast("str | LongText", api.kind(name).read(name, given[name])) if name in given else None
        for name in ("image", "mask")
    )
    if mask is not None and image is None:
        raise MissingInput(MASK_ALONE, field="mask")
    names = {name for name in given if given[name] != "auto"}
    return Sources(image, mask, image is not None and names.isdisjoint(_SIZES))


def webhook(body: dict[str, Any], query: Mapping[str, str]) -> str:
    """Read the webhook's URL from the query or the body; empty if there is none. Raises InvalidInput."""
    for url in (query.get("webhook"), body.get("webhook"), body.get("webhook_url")):
        if url is not None and _WIRE["webhook"].kind.read("webhook", url):
            return cast("str", url)
    return ""


def with_webhook(submission: ImageRequest, body: dict[str, Any]) -> ImageRequest:
    """Turn off what a webhook excludes. Raises InvalidInput if the request turned it on explicitly."""
    if body.get("enable_base64_output") is True:
        raise InvalidInput(NO_BASE64, field="enable_base64_output")
    if submission.enable_sync_mode:
        raise InvalidInput(
            "enable_sync_mode is True beside a webhook; accepted: one of the two", field="enable_sync_mode"
        )
    return replace(submission, enable_base64_output=False)


def idempotency_key(text: str | None) -> str | None:
    """Read the value of the header Idempotency-Key. Raises InvalidInput."""
    if text is not None and not _IDEMPOTENCY_KEY.fullmatch(text):
        raise InvalidInput(f"Idempotency-Key is {text!r:.100}; accepted: 1 to 255 printable ASCII characters")
    return text


def moment(name: str, value: object) -> int | None:
    """Read a time in ISO 8601 as ms since the epoch; without a zone it is UTC. Raises InvalidInput."""
    if value is None or value == "":
        return None
    accepted = "a time such as 2026-11-22T18:00:00.000Z"
    if not isinstance(value, str):
        raise refused(name, value, accepted)
    try:
        read = datetime.fromisoformat(value.strip())
        return round((read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise refused(name, value, accepted) from error


def _given(body: dict[str, Any], api: Api) -> dict[str, Any]:
    """Return the parameters that are present: without nulls, and on v3 without empty texts, as in forms."""
    if api.extras:
        return {name: value for name, value in body.items() if value is not None and (value != "" or name == "prompt")}
    return {name: value for name, value in body.items() if value is not None}


def _size(given: dict[str, Any], api: Api) -> Size:
    """Read the size from the most exact parameter that gives it; the less exact ones are validated too."""
    sizes: dict[str, Size] = {}
    for name in ("aspect_ratio", "target_size", "size") if api.extras else ("size",):
        if name in given:
            sizes[name] = api.kind(name).read(name, given[name])
    if "size" in sizes:
        return sizes["size"]
    if "width" in given or "height" in given:
        return of_sides(given, api.kind("width"), api.kind("height"))
    return sizes.get("target_size") or sizes.get("aspect_ratio") or DEFAULT_SIZE


def of_sides(given: dict[str, Any], width: Integer, height: Integer, place: str = "") -> Size:
    """Read width and height, which must both be given. Raises InvalidInput, or MissingInput if one is absent."""
    sides = []
    for name, kind in (("width", width), ("height", height)):
        if given.get(name) is None:
            raise MissingInput(
                f"{place}{name} is absent; accepted: width and height together, or size instead of both",
                field=f"{place}{name}",
            )
        sides.append(kind.read(f"{place}{name}", given[name]))
    return Size(*sides)


def text(name: str, value: object, accepted: str) -> str:
    """Read a text of another route, such as a file and a database can store. Raises InvalidInput."""
    return Text(PROMPT_MAX_CHARS, what=accepted).read(name, value)


def flag(given: dict[str, Any], name: str, default: bool) -> bool:
    """Read a boolean of any route. Raises InvalidInput."""
    return default if given.get(name) is None else Boolean().read(name, given[name])
