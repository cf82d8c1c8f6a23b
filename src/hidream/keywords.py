"""The keywords with which Python asks for an image: `hidream.Pipeline` and a client of the server take the same ones.

`request.ImageRequest` declares the parameters, their bounds, defaults and descriptions; the names are the API's, which
are diffusers' where it has them. Type checkers and editors read only what is written down, so `Keywords` writes the
names and types down once more, and a test compares the two. What else depends on the names is derived: the signature
and the help of a method (`documented`), and the errors about unknown names (`check_names`).

Left out are the parameters of a delivery by HTTP, and those of a file, which `Image.save` takes. Standard library only.
"""

from __future__ import annotations

import inspect
import json
import os
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, TypeVar

from hidream.errors import InvalidInput
from hidream.parameter import Choice, Integer, Number, Parameter
from hidream.request import BY_NAME, PARAMETERS, LoraUse
from hidream.settings.nearest import nearest
from hidream.types import DEFAULT_SIZE, SIDE_MAX_PX, SIDE_MIN_PX, Conformance, Mode, Render, Sampler, Size

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

F = TypeVar("F")

ImageSource: TypeAlias = "Image.Image | np.ndarray | os.PathLike[str] | str | bytes"
"""An image in memory, the path of a file, or a file's bytes (`images/in_memory.py`)."""
OneLora: TypeAlias = "str | tuple[str, float] | LoraUse | Mapping[str, Any]"
"""A name, a name with a weight, {name: weight, ...}, or the API's {"name": ..., "scale": ...}."""


class Keywords(TypedDict, total=False):
    """Everything beside the prompt that decides an image. None is the same as leaving a keyword out."""

    size: str | tuple[int, int] | Size | None
    width: int | None
    height: int | None
    seed: int | None
    negative_prompt: str | None
    num_inference_steps: int | None
    guidance_scale: float | None
    image: ImageSource | None
    strength: float | None
    mask: ImageSource | None
    loras: OneLora | Sequence[OneLora] | None
    sampler: Sampler | Literal["flash", "unipc", "euler"] | None
    shift: float | None
    conformance: Conformance | Literal["diffusers", "official"] | None
    render: Render | Literal["best", "scaled", "native", "refine", "reference"] | None
    mode: Mode | Literal["exact", "balanced", "turbo"] | None
    enable_safety_checker: bool | None


OF_HTTP = ("enable_base64_output", "enable_sync_mode")
OF_FILES = ("output_format", "output_quality")
SIDE = Integer(SIDE_MIN_PX, SIDE_MAX_PX)
SIDES = ("width", "height")
"""With which a size may be given instead."""
NAMES = tuple(Keywords.__annotations__)

FORMS = {
    "size": f'The size in pixels, each side {SIDE_MIN_PX} to {SIDE_MAX_PX}: "1024x1024", "1024*1024" or (1024, 1024). '
    f"Default: that of `image`, else {DEFAULT_SIZE}.",
    "width": "With height, instead of a size.",
    "height": "With width, instead of a size.",
    "seed": f"{BY_NAME['seed'].description.partition(';')[0]}. Default, and −1: a random one, which `Image.seed` has.",
    "image": "An image to start from: a PIL image, an array [height, width, 3 or 4] of uint8 or of floats from 0 to 1, "
    "a path, or the bytes of a file.",
    "mask": "In the same forms, and of the size of `image`: white or transparent where `image` may change.",
    "loras": 'LoRAs to apply: "name", ("name", 0.8), {"name": 0.8}, or a list of these. The names are those of the '
    "folder that `from_pretrained(loras=...)` was given.",
    "mode": "How much quality may be traded for speed. Default: that of the pipeline.",
}
"""Descriptions of what Python takes in other forms than the API; the others are the declaration's."""

CALLED_ELSEWHERE = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "negative": "negative_prompt",
    "generator": "seed, a whole number",
    "init_image": "image",
    "mask_image": "mask",
    "lora": "loras",
    "scheduler": "sampler",
    "n": "num_images",
    "num_images_per_prompt": "num_images",
    "output_format": 'the suffix in `image.save("fox.jpg")`',
    "output_quality": "`image.save(path, quality=90)`",
    "output_type": "`image.pixels`, `image.image`",
    "callback": "`stream`, which yields the progress",
    "callback_on_step_end": "`stream`, which yields the progress",
    "prompt_2": "`hidream.Prompts`, as the prompt",
    "prompt_3": "`hidream.Prompts`, as the prompt",
    "prompt_4": "`hidream.Prompts`, as the prompt",
    "prompts": "`hidream.Prompts`, as the prompt",
}
"""What other libraries, and other parts of this one, call things: for errors about unknown names."""


def check_names(
    given: Collection[str], known: Sequence[str] = NAMES, elsewhere: Mapping[str, str] | None = None
) -> None:
    """Raise InvalidInput on a keyword that is not `known`, with the name that was probably meant."""
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        others = CALLED_ELSEWHERE if elsewhere is None else elsewhere
        suggestion = nearest(unknown, {**others, **{name: name for name in known}})
        raise InvalidInput(f"unknown keyword {unknown!r:.100}{suggestion}; accepted: {', '.join(known)}", field=unknown)


def documented(function: F) -> F:
    """Give a method with `**options: Unpack[Keywords]` the signature and the help of its keywords."""
    function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{_table()}"
    return spelled_out(function)


def spelled_out(function: F) -> F:
    """Show the keywords in the signature of a method, with their defaults, as editors and `help` read it."""
    parameters = list(inspect.signature(function).parameters.values())  # type: ignore[arg-type]
    *own, last = (each.replace(annotation=inspect.Parameter.empty) for each in parameters)
    assert last.kind is inspect.Parameter.VAR_KEYWORD, f"{function} has no keywords to spell out"
    options = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_default(name)) for name in NAMES]
    function.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    return function


def _default(name: str) -> object:
    """The default that the signature shows: None where it follows from something else."""
    default = None if name in FORMS else BY_NAME[name].default
    return str(default) if isinstance(default, str) else default


def _table() -> str:
    return "\n".join(_entry(name) for name in NAMES)


def _entry(name: str) -> str:
    text = FORMS.get(name) or BY_NAME[name].description
    parameter = BY_NAME.get(name)
    if parameter is not None and isinstance(parameter.kind, Choice):
        text += f" One of {', '.join(map(json.dumps, parameter.kind.values))}."
    elif parameter is not None and isinstance(parameter.kind, Number | Integer) and name != "seed":
        text += f" {_capital(parameter.kind.accepted)}."
    if parameter is not None and parameter.guided:
        text += " Only of the variant full."
    return f"{name}\n{textwrap.indent(textwrap.fill(text, 80), '    ')}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def parameters() -> tuple[Parameter, ...]:
    """The declared parameters that are keywords: all but the prompt, and those of HTTP, files and several images."""
    return tuple(each for each in PARAMETERS if each.name not in ("prompt", "num_images", *OF_HTTP, *OF_FILES))
