"""The parameters of OpenAI's images API, and their translation to those of v3, which are accepted as well.

Source: openai-python 3.54.0, `types/image_generate_params.py`. A feature that this route lacks is an error that names
the route which has it. A parameter that no model here has, and that changes only nuances, causes a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hidream.errors import InvalidInput
from hidream.parameter import in_words, refused
from hidream.request import ImageRequest
from hidream.server import parameters, unused
from hidream.server.parameters import WIRE, Api
from hidream.types import FORMAT_NAMES, FORMATS, ImageFormat, Size, Variant

PATH = "/v1/images/generations"
FORM = Api("v1", extras=True, defaults={"output_format": ImageFormat.PNG})
"""The defaults of this route: URLs, and PNG, the format of DALL-E's images."""

ALIASES = {"n": "num_images", "steps": "num_inference_steps", "output_compression": "output_quality"}
"""Other names of v3's parameters."""

_EVENTS = "the events of a task that POST /api/v3/wavespeed-ai/… takes are at GET /api/v3/predictions/{id}/events"
_BY_V3 = "POST /api/v3/wavespeed-ai/… takes it"
UNSERVED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "stream": ((False,), f"false; {_EVENTS}"),
    "partial_images": ((0,), f"0; {_EVENTS}"),
    "background": (("auto", "opaque"), "auto, opaque; images have no transparency"),
    "image": ((), f"no image to start from here; {_BY_V3}"),
    "mask": ((), f"no mask here; {_BY_V3}"),
    "webhook": ((), f"no webhook, because the answer has the images; {_BY_V3}"),
    "webhook_url": ((), f"no webhook, because the answer has the images; {_BY_V3}"),
    "enable_sync_mode": ((True,), f"true, because the answer has the images; {_BY_V3}"),
    "frame_count": ((), "one image, no animation"),
    "frame_duration_ms": ((), "one image, no animation"),
    "svg": ((), f"images of pixels: output_format {in_words(ImageFormat, 'or')}"),
}
"""Parameters that this route does not support: values that have no effect, and what is accepted."""

IGNORED: Mapping[str, tuple[object, ...]] = {
    "quality": ("auto",),
    "style": (),
    "moderation": ("auto",),
    "complexity": (),
    "user": (),
    "safety_identifier": (),
}
"""Parameters that only OpenAI's models and service have, with the values that have no effect."""

NAMES = frozenset({"model", "response_format", *ALIASES, *UNSERVED, *IGNORED, *(parameter.name for parameter in WIRE)})
"""All names that the route knows."""


def translated(body: Mapping[str, Any], query: Mapping[str, str]) -> dict[str, Any]:
    """Translate a request to v3's parameters. Raises InvalidInput, which names the parameter as it was sent."""
    given = {name: value for name, value in body.items() if value is not None}
    body_and_query = {**query, **given}
    for name, (harmless, accepted) in UNSERVED.items():
        if body_and_query.get(name, "") not in ("", *harmless):
            raise refused(name, body_and_query[name], accepted)
    values = {name: value for name, value in given.items() if name not in UNSERVED}
    for name, ours in ALIASES.items():
        if name in given:
            values[ours] = _agreed(given, name, ours, FORM.kind(ours).read(name, given[name]))
    values["enable_base64_output"] = _base64(given)
    _settle_size(values)
    if "output_quality" in values and "output_quality" not in given and not _lossy(given):
        del values["output_quality"]
    return values


def unused_of(
    body: Mapping[str, Any],
    query: Mapping[str, str],
    values: Mapping[str, Any],
    variant: Variant,
    submission: ImageRequest,
) -> Iterator[str]:
    """List what has no effect in an accepted request; `values` is the result of `translated`."""
    unknown_names = {name: value for name, value in body.items() if name not in NAMES}
    yield from unused.unknown(unknown_names, NAMES - UNSERVED.keys(), PATH)  # unsupported names are not suggested
    yield from unused.unknown(query, (), "the URL")
    for name, harmless in IGNORED.items():
        if body.get(name) not in (None, "", *harmless):
            yield f"{name} was ignored: only OpenAI's own models have it"
    if body.get("output_compression") is not None:
        yield from unused.quality("output_compression", submission)
    yield from unused.without_effect(values, FORM, variant, submission)


def _agreed(given: Mapping[str, Any], name: str, ours: str, value: int) -> int:
    if given.get(ours, value) != value:
        raise InvalidInput(
            f"{name} is {value} and {ours} is {given[ours]!r:.100}; accepted: one of the two, or equal ones", field=name
        )
    return value


def _lossy(given: Mapping[str, Any]) -> bool:
    """Whether the output format has a quality; an unknown format is refused later."""
    image_format = FORMAT_NAMES.get(str(given.get("output_format", FORM.defaults["output_format"])))
    return image_format is None or FORMATS[image_format].quality is not None


def _base64(given: dict[str, Any]) -> bool:
    form = given.get("response_format", "url")
    if form not in ("url", "b64_json"):
        raise refused("response_format", form, "url, b64_json")
    inline = parameters.flag(given, "enable_base64_output", form == "b64_json")
    if "response_format" in given and inline != (form == "b64_json"):
        raise InvalidInput(
            f"response_format is {form!r} and enable_base64_output is {inline}; accepted: one of the two, or the same",
            field="response_format",
        )
    return inline


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
