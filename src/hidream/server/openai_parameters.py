"""The parameters of OpenAI's images API, and their translation to those of v3, which are accepted as well.

Source: openai-python 3.54.0, `types/image_generate_params.py`, `types/image_edit_params.py`. What hidream cannot do is
an error that names the parameter. Values that are OpenAI's own defaults are accepted even so, because clients send them
without being asked to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hidream.errors import InvalidInput, MissingInput
from hidream.parameter import Boolean, Integer, Kind, Text, in_words, refused
from hidream.request import ImageRequest
from hidream.server import parameters, unused
from hidream.server.bodies.form import FormFile
from hidream.server.bodies.long_text import LongText, refuse_constant
from hidream.server.parameters import WIRE, Api
from hidream.types import FORMAT_NAMES, FORMATS, LOSSY, PROMPT_MAX_CHARS, QUALITY_MAX, ImageFormat, Mode, Size, Variant

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
FORM = Api("v1", extras=True, defaults={"output_format": ImageFormat.PNG})
"""The defaults of these routes: URLs, and PNG, the format of OpenAI's images."""
BASE64_MODELS = ("gpt-image", "chatgpt-image")
"""How the names of those models of OpenAI begin that always answer with base64: an alias of such a name does too."""

ALIASES = {"n": "num_images", "steps": "num_inference_steps", "output_compression": "output_quality"}
"""Other names of v3's parameters."""
QUALITIES: Mapping[str, Mode | None] = {
    "auto": None,
    "standard": None,
    "low": Mode.TURBO,
    "medium": Mode.BALANCED,
    "high": Mode.EXACT,
    "xhigh": Mode.EXACT,
    "max": Mode.EXACT,
    "hd": Mode.EXACT,
}
"""OpenAI's qualities, and the mode that each means; None is the default of `mode`."""
PARTIAL_IMAGES_MAX = 3
STREAM, PARTIAL_IMAGES = Boolean(), Integer(0, PARTIAL_IMAGES_MAX)
END_USER = Text(PROMPT_MAX_CHARS)
"""OpenAI's `safety_identifier` and `user`, its older name: whom the client generates for, which the log tells."""
STREAMED: Mapping[str, Kind] = {
    "stream": STREAM,
    "partial_images": PARTIAL_IMAGES,
    "user": END_USER,
    "safety_identifier": END_USER,
}
"""The types of parameters that v3 does not have."""

_BY_V3 = "POST /api/v3/wavespeed-ai/… takes it"
UNSERVED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "background": (("auto", "opaque"), "auto, opaque; images have no transparency"),
    "moderation": (("auto",), "auto; enable_safety_checker decides whether the prompt and the images are checked"),
    "style": (("vivid",), "vivid, the default of OpenAI; the prompt describes the style"),
    "input_fidelity": (("low",), "low, the default of OpenAI; strength says how much of the image may change"),
    "complexity": ((), "no complexity, because the model does not plan"),
    "markup": ((), "no markup; a mask says where the image may change"),
    "webhook": ((), f"no webhook, because the answer has the images; {_BY_V3}"),
    "webhook_url": ((), f"no webhook, because the answer has the images; {_BY_V3}"),
    "enable_sync_mode": ((True,), f"true, because the answer has the images; {_BY_V3}"),
    "frame_count": ((), "one image, no animation"),
    "frame_duration_ms": ((), "one image, no animation"),
    "svg": ((), f"images of pixels: output_format {in_words(ImageFormat, 'or')}"),
}
"""Parameters that hidream does not have: values that have no effect, and what is accepted."""

NAMES = frozenset(
    {"model", "response_format", "quality", "images", *ALIASES, *STREAMED, *UNSERVED, *(each.name for each in WIRE)}
)
"""All names that the routes know."""
FILES = {"image": "image", "image[]": "image", "mask": "mask"}
"""The fields of a form that have files, and the parameters that these are."""
_ONE_IMAGE = "accepted: one image to start from"
_KINDS: Mapping[str, Kind] = {
    **{parameter.name: FORM.kind(parameter.name) for parameter in WIRE},
    **{name: FORM.kind(ours) for name, ours in ALIASES.items()},
    **STREAMED,
}


@dataclass(frozen=True, slots=True)
class Translated:
    """A request in v3's parameters (`values`), and what only OpenAI's API has."""

    values: dict[str, Any]
    stream: bool
    partial_images: int
    end_user: str


def translated(body: Mapping[str, Any], query: Mapping[str, str], *, inline: bool = False) -> Translated:
    """Translate a request to v3's parameters. Raises InvalidInput, which names the parameter as it was sent.

    Without a `response_format`, images are base64 if `inline`, else URLs.
    """
    given = {name: value for name, value in body.items() if value is not None}
    body_and_query = {**query, **given}
    for name, (harmless, accepted) in UNSERVED.items():
        if body_and_query.get(name, "") not in ("", *harmless):
            raise refused(name, body_and_query[name], accepted)
    values = {name: value for name, value in given.items() if name not in UNSERVED}
    for name, ours in ALIASES.items():
        if name in given:
            values[ours] = _agreed(given, name, ours, FORM.kind(ours).read(name, given[name]))
    stream = parameters.flag(given, "stream", False)
    values["enable_base64_output"] = _base64(given, inline=inline, stream=stream)
    values |= _images(given)
    _settle_size(values)
    _settle_quality(values)
    _settle_compression(values, given)
    return Translated(values, stream, _partial_images(given, stream=stream), _end_user(given))


def of_form(texts: Sequence[tuple[str, str]], files: Mapping[str, FormFile]) -> dict[str, Any]:
    """Return the JSON object that says the same as a form. Raises InvalidInput for a field that is given twice.

    Texts of numbers, true, false, lists and objects become these where the parameter has such a type. Others stay
    texts, and are refused when they are read.
    """
    body: dict[str, Any] = dict(files)
    for field, text in texts:
        name = field.partition("[")[0]  # image[], and svg[model]
        if name in body:
            raise InvalidInput(f"{name} is given twice; accepted: once", field=name)
        body[name] = _typed(name, text)
    return body


def refuse_file(field: str) -> None:
    """Refuse a form's file that is not taken: a second image or mask, or a field that has no file."""
    name = FILES.get(field, field)
    if name == "image":
        raise InvalidInput(f"image is a second file; {_ONE_IMAGE}", field=name)
    if name == "mask":
        raise InvalidInput("mask is a second file; accepted: one mask", field=name)
    accepted = UNSERVED[name][1] if name in UNSERVED else f"a file in {in_words(FILES, 'or')}"
    raise InvalidInput(f"{name:.100} is a file; accepted: {accepted}", field=name)


def check_edit(values: Mapping[str, Any]) -> None:
    """Check that a request for an edit has an image. Raises MissingInput."""
    if values.get("image") in (None, ""):
        raise MissingInput("image is absent; accepted: a file, a URL, a data: URI or base64", field="image")


def unused_of(
    body: Mapping[str, Any],
    query: Mapping[str, str],
    values: Mapping[str, Any],
    variant: Variant,
    submission: ImageRequest,
    path: str,
) -> Iterator[str]:
    """List what has no effect in an accepted request; `values` are those of `translated`."""
    unknown_names = {name: value for name, value in body.items() if name not in NAMES}
    yield from unused.unknown(unknown_names, NAMES - UNSERVED.keys(), path)  # unsupported names are not suggested
    yield from unused.unknown(query, (), "the URL")
    yield from unused.without_effect(values, FORM, variant, submission)


def quality_of(mode: Mode) -> str:
    """Return OpenAI's name of a mode: the first of `QUALITIES`."""
    return next(name for name, each in QUALITIES.items() if each is mode)


def _agreed(given: Mapping[str, Any], name: str, ours: str, value: object) -> object:
    if given.get(ours, value) != value:
        raise InvalidInput(
            f"{name} is {given[name]!r:.100} and {ours} is {given[ours]!r:.100}; "
            "accepted: one of the two, or equal ones",
            field=name,
        )
    return value


def _base64(given: dict[str, Any], *, inline: bool, stream: bool) -> bool:
    form = given.get("response_format", "b64_json" if inline or stream else "url")
    if form not in ("url", "b64_json"):
        raise refused("response_format", form, "url, b64_json")
    base64 = parameters.flag(given, "enable_base64_output", form == "b64_json")
    if "response_format" in given and base64 != (form == "b64_json"):
        raise InvalidInput(
            f"response_format is {form!r} and enable_base64_output is {base64}; accepted: one of the two, or the same",
            field="response_format",
        )
    if stream and not base64:
        name = "response_format" if "response_format" in given else "enable_base64_output"
        raise refused(name, given[name], "base64 beside stream: the events have no URLs")
    return base64


def _images(given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the init image and the mask in the forms of OpenAI's JSON: lists of images, and objects with a URL."""
    names = [name for name in ("image", "images") if given.get(name) not in ("", [], None)]
    if len(names) > 1:
        raise InvalidInput(f"image and images are both given; {_ONE_IMAGE}", field="images")
    found: dict[str, Any] = dict.fromkeys(("image", "images"))
    for name in names:
        each = given[name] if isinstance(given[name], list) else [given[name]]
        if len(each) > 1:
            raise InvalidInput(f"{name} has {len(each)} images; {_ONE_IMAGE}", field=name)
        found["image"] = _source(name, each[0])
    return found | ({"mask": _source("mask", given["mask"])} if "mask" in given else {})


def _source(name: str, value: object) -> object:
    """Return the source in an object with an `image_url`; anything else is read later. Raises InvalidInput."""
    if not isinstance(value, dict):
        return value
    accepted = '{"image_url": ...}, or the text of a URL, a data: URI or base64'
    if value.get("file_id") is not None:
        raise InvalidInput(
            f"{name}.file_id is {value['file_id']!r:.100}; accepted: {accepted}", field=f"{name}.file_id"
        )
    source = value.get("image_url")
    if not isinstance(source, str | LongText):
        raise refused(name, value, accepted)
    return source


def _settle_size(values: dict[str, Any]) -> None:
    """Remove a size of "auto". Raises InvalidInput if width or height contradict the size."""
    if values.get("size") == "auto":
        del values["size"]
    if not isinstance(values.get("size"), str):
        return
    size: Size = FORM.kind("size").read("size", values["size"])
    for name, value in (("width", size.width), ("height", size.height)):
        if values.get(name, value) != value:
            raise InvalidInput(
                f"size is {values['size']!r} and {name} is {values[name]!r:.100}; "
                "accepted: one of the two, or equal ones",
                field="size",
            )


def _settle_quality(values: dict[str, Any]) -> None:
    """Replace a quality by its mode. Raises InvalidInput if it is unknown, or contradicts `mode`."""
    quality = values.pop("quality", "auto") or "auto"
    if not isinstance(quality, str) or quality not in QUALITIES:
        raise refused("quality", quality, ", ".join(QUALITIES))
    if mode := QUALITIES[quality]:
        values["mode"] = _agreed({**values, "quality": quality}, "quality", "mode", str(mode))


def _settle_compression(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Remove the quality of a lossless file that OpenAI's API would accept. Raises InvalidInput for any other."""
    image_format = FORMAT_NAMES.get(str(given.get("output_format", FORM.defaults["output_format"])))
    if "output_compression" not in given or image_format is None or FORMATS[image_format].quality is not None:
        return  # an unknown format is refused later
    if values["output_quality"] != QUALITY_MAX:
        lossless = f"{QUALITY_MAX} for {FORMATS[image_format].label}, which is lossless"
        accepted = f"{lossless}, or output_format {in_words(LOSSY, 'or')}"
        raise refused("output_compression", given["output_compression"], accepted)
    if "output_quality" not in given:
        del values["output_quality"]


def _partial_images(given: Mapping[str, Any], *, stream: bool) -> int:
    number = PARTIAL_IMAGES.read("partial_images", given.get("partial_images") or 0)
    if number and not stream:
        raise refused("partial_images", number, "0 without stream: true")
    return number


def _end_user(given: Mapping[str, Any]) -> str:
    """Read whom the client generates for. `safety_identifier` goes before `user`, as OpenAI says."""
    read = {name: END_USER.read(name, given[name]) for name in ("safety_identifier", "user") if name in given}
    return next(filter(None, read.values()), "")


def _typed(name: str, text: str) -> object:
    kind = _KINDS.get(name)
    if kind is None or kind.schema().get("type") == "string":
        return text
    if kind.schema().get("type") == "boolean":
        text = text.lower()  # Python's clients write True
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return text
