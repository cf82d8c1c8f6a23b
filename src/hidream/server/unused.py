"""Warnings about parameters that have no effect: nothing is ignored silently.

Clients made for other models always send certain parameters, so an unknown name is not an error. A user who misspelt a
name sees the warning in the first response and in the result. Nulls, empty values and defaults cause no warning.
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
"""How many unknown names get a warning each; of the others only the number is given."""
NAME_MAX_CHARS = 60
ALIKE = 0.7
"""How similar a known name must be to be suggested (difflib's ratio)."""
SAME_ASPECT = 0.05
"""The largest difference of two aspect ratios (of their logarithms) that count as equal, because sides are rounded."""

PROPERTIES: Mapping[str, Mapping[str, Any]] = {
    api.name: schema.submission(api, Variant.FULL)["properties"] for api in (V2, V3)
}
"""The parameters of each version, for the model that has the most."""
OTHER_NAMES = {
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
"""Names in other APIs that are not similar to ours, and our names for them."""


def of_submission(
    body: Mapping[str, Any], query: Mapping[str, str], api: Api, model: str, variant: Variant, submission: ImageRequest
) -> tuple[str, ...]:
    """List what has no effect in a submission that `parameters` has accepted."""
    known, in_v3 = PROPERTIES[api.name], PROPERTIES[V3.name]
    unknown_names = {name: value for name, value in body.items() if name not in in_v3 and name != "model"}
    return (
        *unknown(unknown_names, known, f"/api/{api.name}"),
        *_v3_only(body, known, in_v3, api),
        *_model(body, model),
        *unknown(query, ("webhook",), "the URL"),
        *_webhooks(body, query),
        *without_effect(body, api, variant, submission),
    )


def unknown(given: Mapping[str, object], known: Collection[str], where: str) -> Iterator[str]:
    """List the names that are unknown to `where`, and suggest similar known ones."""
    names = [name for name, value in given.items() if name not in known and not _empty(value)]
    for name in names[:NAMED_MAX]:
        yield f"{_shown(name)} is not a parameter of {where} and was ignored{_suggestion(name, known)}"
    if len(names) > NAMED_MAX:
        yield f"and {len(names) - NAMED_MAX} more names that are not parameters of {where} were ignored"


def with_warnings(data: dict[str, Any], *more: Iterator[str]) -> dict[str, Any]:
    """Add warnings to the data of a response, if there are any."""
    warnings = [*data.get("warnings", ()), *chain(*more)]
    return data | {"warnings": warnings} if warnings else data


def without_effect(body: Mapping[str, Any], api: Api, variant: Variant, submission: ImageRequest) -> tuple[str, ...]:
    """List the known parameters that change nothing, because of the model or of other parameters."""
    given = {name: value for name, value in body.items() if not _empty(value)}
    sides = _sides(given, submission.size, "size")
    if not api.extras:
        return tuple(sides)
    sizes = _other_sizes(given, submission.size)
    return (*sides, *sizes, *_guidance(given, variant), *_without_requirement(given, submission), *_loras(given))


def _v3_only(body: Mapping[str, Any], known: Collection[str], in_v3: Mapping[str, Any], api: Api) -> Iterator[str]:
    for name, schema_of_name in in_v3.items():
        value = body.get(name)
        if name not in known and not _empty(value) and value != schema_of_name.get("default"):
            yield f"{name} was ignored: it is a parameter of /api/{V3.name}, not of /api/{api.name}"


def _model(body: Mapping[str, Any], model: str) -> Iterator[str]:
    given = body.get("model")
    if not _empty(given) and given not in (model, model.rpartition("/")[2]):
        yield f"model was ignored: the path names {model}"


def _webhooks(body: Mapping[str, Any], query: Mapping[str, str]) -> Iterator[str]:
    given = {"?webhook=": query.get("webhook"), "webhook": body.get("webhook"), "webhook_url": body.get("webhook_url")}
    urls = {name: url for name, url in given.items() if url}
    first = next(iter(urls), "")
    yield from (f"{name} was ignored: {first} names another URL" for name, url in urls.items() if url != urls[first])


def _sides(given: Mapping[str, Any], size: Size, decided_by: str) -> Iterator[str]:
    for name, used in (("width", size.width), ("height", size.height)):
        if name in given and given[name] != used:
            yield f"{name} was ignored: {decided_by} says {size}"


def _other_sizes(given: Mapping[str, Any], size: Size) -> Iterator[str]:
    decided_by = "size" if "size" in given else "width and height"
    if target := given.get("target_size"):
        yield from (f"target_size.{warning}" for warning in _sides(target, size, decided_by))
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
            yield f"negative_prompt has no effect with a guidance_scale of {guidance}; it has one above 1"
        return
    for name, is_given in (("guidance_scale", guidance is not None and guidance > 1), ("negative_prompt", negative)):
        if is_given:
            yield f"{name} was ignored: {variant} is distilled and has no guidance; hidream-i1-full takes it"


def _without_requirement(given: Mapping[str, Any], submission: ImageRequest) -> Iterator[str]:
    """List the parameters that have an effect only together with another one, which is absent."""
    if "image" not in given and given.get("strength", STRENGTH) != STRENGTH:
        yield "strength was ignored: there is no image"
    if "output_quality" in given:
        yield from quality("output_quality", submission)


def quality(name: str, submission: ImageRequest) -> Iterator[str]:
    """Warn that the file format has no quality, which the request gives under `name`."""
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
    if other := OTHER_NAMES.get(name.lower()):
        close = [other] if other in known else []
    else:
        close = difflib.get_close_matches(name.lower(), known, 1, ALIKE)
    return f"; did you mean {close[0]}?" if close else ""
