"""What a request says without any effect, in words for its `warnings`: nothing is ignored in silence.

Clients made for other models send parameters by themselves, so a name that a route does not know is no error. Whoever
misspelt one reads it in the first answer, and still when the task has ended. A null, an empty value and a default ask
for nothing, and are not mentioned.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from math import log
from typing import Any

from hidream.parameter import in_words
from hidream.request import ImageRequest
from hidream.server import schema
from hidream.server.parameters import V2, V3, Api
from hidream.types import FORMATS, LOSSY, STRENGTH, Size, Variant

NAMED_MAX = 10
"""Unknown names that are told one by one; of more their number is enough."""
NAME_MAX_CHARS = 60
ALIKE = 0.7
"""How similar a known name must be to be suggested (difflib's ratio)."""
SAME_ASPECT = 0.05
"""Aspects that differ by less are the same: sides are rounded."""

PROPERTIES: Mapping[str, Mapping[str, Any]] = {
    api.name: schema.submission(api, Variant.FULL)["properties"] for api in (V2, V3)
}
"""The parameters of each version, of the model that has most of them."""
OTHERS = {
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "image_size": "size",
    "image_url": "image",
    "images": "image",
    "init_image": "image",
    "input_image": "image",
    "lora": "loras",
    "lora_weights": "loras",
    "mask_image": "mask",
    "n": "num_images",
    "resolution": "size",
    "response_format": "enable_base64_output",
    "scheduler": "sampler",
    "steps": "num_inference_steps",
    "weight": "scale",
}
"""Names of other APIs that are not spelt like ours, and what ours are."""


def of_submission(
    body: Mapping[str, Any], query: Mapping[str, str], api: Api, model: str, variant: Variant, submission: ImageRequest
) -> tuple[str, ...]:
    """Tell what of a submission to a version of the API has no effect, after `parameters` has accepted it."""
    known, elsewhere = PROPERTIES[api.name], PROPERTIES[V3.name]
    strange = {name: value for name, value in body.items() if name not in elsewhere and name != "model"}
    return (
        *unknown(strange, known, f"/api/{api.name}"),
        *_of_v3_alone(body, known, elsewhere, api),
        *_model(body, model),
        *unknown(query, ("webhook",), "the URL"),
        *_webhooks(body, query),
        *without_effect(body, api, variant, submission),
    )


def unknown(given: Mapping[str, object], known: Collection[str], where: str) -> Iterator[str]:
    """Tell which names are not known at a place, and which were probably meant."""
    names = [name for name, value in given.items() if name not in known and not _empty(value)]
    for name in names[:NAMED_MAX]:
        yield f"{_shown(name)} is not a parameter of {where} and was ignored{_suggestion(name, known)}"
    if len(names) > NAMED_MAX:
        yield f"and {len(names) - NAMED_MAX} more names that are not parameters of {where} were ignored"


def with_warnings(data: dict[str, Any], *strange: Iterator[str]) -> dict[str, Any]:
    """Add to an answer's data what was said without effect, if there is anything."""
    told = [*data.get("warnings", ()), *chain(*strange)]
    return data | {"warnings": told} if told else data


def without_effect(body: Mapping[str, Any], api: Api, variant: Variant, submission: ImageRequest) -> tuple[str, ...]:
    """Tell which known parameters change nothing, because of what the model is or of what else was said."""
    given = {name: value for name, value in body.items() if not _empty(value)}
    sides = _sides(given, submission.size, "size")
    if not api.extras:
        return tuple(sides)
    sizes = _other_sizes(given, submission.size)
    return (*sides, *sizes, *_guidance(given, variant), *_alone(given, submission), *_loras(given))


def _of_v3_alone(
    body: Mapping[str, Any], known: Collection[str], elsewhere: Mapping[str, Any], api: Api
) -> Iterator[str]:
    for name, described in elsewhere.items():
        value = body.get(name)
        if name not in known and not _empty(value) and value != described.get("default"):
            yield f"{name} was ignored: it is a parameter of /api/{V3.name}, not of /api/{api.name}"


def _model(body: Mapping[str, Any], model: str) -> Iterator[str]:
    said = body.get("model")
    if not _empty(said) and said not in (model, model.rpartition("/")[2]):
        yield f"model was ignored: the path names {model}"


def _webhooks(body: Mapping[str, Any], query: Mapping[str, str]) -> Iterator[str]:
    said = {"?webhook=": query.get("webhook"), "webhook": body.get("webhook"), "webhook_url": body.get("webhook_url")}
    urls = {name: url for name, url in said.items() if url}
    first = next(iter(urls), "")
    yield from (f"{name} was ignored: {first} names another URL" for name, url in urls.items() if url != urls[first])


def _sides(given: Mapping[str, Any], size: Size, decided_by: str) -> Iterator[str]:
    for name, settled in (("width", size.width), ("height", size.height)):
        if name in given and given[name] != settled:
            yield f"{name} was ignored: {decided_by} says {size}"


def _other_sizes(given: Mapping[str, Any], size: Size) -> Iterator[str]:
    decided_by = "size" if "size" in given else "width and height"
    if target := given.get("target_size"):
        yield from (f"target_size.{told}" for told in _sides(target, size, decided_by))
        yield from unknown(target, ("width", "height"), "target_size")
    ratio = given.get("aspect_ratio", "auto")
    if ratio != "auto":
        wanted = V3.kind("aspect_ratio").read("aspect_ratio", ratio)
        if abs(log(wanted.width / wanted.height * size.height / size.width)) > SAME_ASPECT:
            yield f"aspect_ratio was ignored: the size is given, {size}"


def _guidance(given: Mapping[str, Any], variant: Variant) -> Iterator[str]:
    guidance, negative = given.get("guidance_scale"), "negative_prompt" in given
    if variant.guided:
        if negative and guidance is not None and guidance <= 1:
            yield f"negative_prompt has no effect with a guidance_scale of {guidance}; it has above 1"
        return
    for name, asked in (("guidance_scale", guidance is not None and guidance > 1), ("negative_prompt", negative)):
        if asked:
            yield f"{name} was ignored: {variant} is distilled and has no guidance; hidream-i1-full takes it"


def _alone(given: Mapping[str, Any], submission: ImageRequest) -> Iterator[str]:
    """What needs something else beside it."""
    if "image" not in given and given.get("strength", STRENGTH) != STRENGTH:
        yield "strength was ignored: there is no image"
    if "output_quality" in given:
        yield from quality("output_quality", submission)


def quality(name: str, submission: ImageRequest) -> Iterator[str]:
    """Tell whoever names a quality, in whichever words, that the file has none."""
    file = FORMATS[submission.output_format]
    if file.quality is None:
        yield f"{name} was ignored: a {file.label} file has none; {in_words(LOSSY)} have"


def _loras(given: Mapping[str, Any]) -> Iterator[str]:
    known = PROPERTIES[V3.name]["loras"]["items"]["properties"]
    for i, lora in enumerate(given.get("loras", ())):
        yield from unknown(lora, known, f"loras[{i}]")
        if lora.get("name") and lora.get("path") and lora["name"] != lora["path"]:
            yield f"loras[{i}].path was ignored: its name is {lora['name']!r:.60}"


def _empty(value: object) -> bool:
    return value is None or value in ("", [], {})


def _shown(name: str) -> str:
    plain = name.isascii() and name.isidentifier() and len(name) <= NAME_MAX_CHARS
    return name if plain else ascii(name[:NAME_MAX_CHARS])


def _suggestion(name: str, known: Collection[str]) -> str:
    if len(name) > NAME_MAX_CHARS:
        return ""
    if other := OTHERS.get(name.lower()):
        close = [other] if other in known else []
    else:
        close = difflib.get_close_matches(name.lower(), known, 1, ALIKE)
    return f"; did you mean {close[0]}?" if close else ""
