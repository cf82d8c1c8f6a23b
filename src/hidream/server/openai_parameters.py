"""The parameters of OpenAI's images API, and what they are by v3's names, all of which are taken as well.

Source: openai-python 3.54.0, `types/image_generate_params.py`. What cannot be had there is an error that says where it
can; what no model here has, and changes no more than a nuance, is told in `warnings`.
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
"""Its defaults: URLs, and PNG, as DALL-E's images are."""

ALIASES = {"n": "num_images", "steps": "num_inference_steps", "output_compression": "output_quality"}
"""Other names, and what they are on v3."""

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
"""What this route cannot do, with the values that ask for nothing, and what else is accepted."""

IGNORED: Mapping[str, tuple[object, ...]] = {
    "quality": ("auto",),
    "style": (),
    "moderation": ("auto",),
    "complexity": (),
    "user": (),
    "safety_identifier": (),
}
"""What only OpenAI's models and service have, with the values that ask for nothing."""

NAMES = frozenset({"model", "response_format", *ALIASES, *UNSERVED, *IGNORED, *(parameter.name for parameter in WIRE)})
"""All that the route knows."""


def translated(body: Mapping[str, Any], query: Mapping[str, str]) -> dict[str, Any]:
    """Say by v3's names what is asked for. Raises InvalidInput under the name that was sent."""
    given = {name: value for name, value in body.items() if value is not None}
    everywhere = {**query, **given}
    for name, (harmless, accepted) in UNSERVED.items():
        if everywhere.get(name, "") not in ("", *harmless):
            raise refused(name, everywhere[name], accepted)
    said = {name: value for name, value in given.items() if name not in UNSERVED}
    for name, ours in ALIASES.items():
        if name in given:
            said[ours] = _agreed(given, name, ours, FORM.kind(ours).read(name, given[name]))
    said["enable_base64_output"] = _base64(given)
    _settle_size(said)
    if "output_quality" in said and "output_quality" not in given and not _lossy(given):
        del said["output_quality"]
    return said


def unused_of(
    body: Mapping[str, Any], query: Mapping[str, str], said: Mapping[str, Any], variant: Variant, asked: ImageRequest
) -> Iterator[str]:
    """Tell what of an accepted request has no effect; `said` is what `translated` has made of it."""
    strange = {name: value for name, value in body.items() if name not in NAMES}
    yield from unused.unknown(strange, NAMES - UNSERVED.keys(), PATH)  # what would be refused is not suggested
    yield from unused.unknown(query, (), "the URL")
    for name, harmless in IGNORED.items():
        if body.get(name) not in (None, "", *harmless):
            yield f"{name} was ignored: only OpenAI's own models have it"
    if body.get("output_compression") is not None:
        yield from unused.quality("output_compression", asked)
    yield from unused.without_effect(said, FORM, variant, asked)


def _agreed(given: Mapping[str, Any], name: str, ours: str, value: int) -> int:
    if given.get(ours, value) != value:
        raise InvalidInput(
            f"{name} is {value} and {ours} is {given[ours]!r:.100}; accepted: one of the two, or equal ones", field=name
        )
    return value


def _lossy(given: Mapping[str, Any]) -> bool:
    """Whether the format has a quality; what is not known as a format is refused later."""
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


def _settle_size(said: dict[str, Any]) -> None:
    """Leave out a size of "auto", which is none. Raises InvalidInput if width or height say another size."""
    if said.get("size") == "auto":
        del said["size"]
    if not isinstance(said.get("size"), str):
        return
    size: Size = FORM.kind("size").read("size", said["size"])
    for name, value in (("width", size.width), ("height", size.height)):
        if said.get(name, value) != value:
            raise InvalidInput(
                f"size is {said['size']!r} and {name} is {said[name]!r:.100}; accepted: one of the two, or equal ones",
                field="size",
            )
