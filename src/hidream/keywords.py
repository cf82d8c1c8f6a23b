"""The keywords with which Python asks for an image: those of `hidream.Pipeline` and of `hidream.Client`.

`request.ImageRequest` declares the parameters, their bounds, defaults and descriptions; the names are the API's, which
are diffusers' where it has them. Type checkers and editors read only what is written down, so `Keywords` and `Options`
write the names and types down once more, and a test compares them with the declaration. What else depends on the names
is derived by a `KeywordSet`: how values are read, the errors about unknown names, and the signature and the help of a
method.

The client imports this module, so it imports neither numpy nor settings. It knows no model, no server and no image
file: `image` and `mask` pass through it as they are.
"""

from __future__ import annotations

import inspect
import json
import os
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

from hidream import arrays
from hidream.errors import InvalidInput, MissingInput
from hidream.nearest import nearest
from hidream.parameter import Choice, Integer, Number, Parameter, refused
from hidream.request import BY_NAME, LoraUse
from hidream.types import (
    DEFAULT_SIZE,
    SIDE_MAX_PX,
    SIDE_MIN_PX,
    Conformance,
    ImageFormat,
    Mode,
    Render,
    Sampler,
    Size,
)

if TYPE_CHECKING:
    from PIL import Image

F = TypeVar("F")


class Array(Protocol):
    """An array, such as NumPy's, which this module does not import."""

    def __array__(self) -> Any: ...  # noqa: ANN401 - an array of NumPy


ImageSource: TypeAlias = "Image.Image | Array | os.PathLike[str] | str | bytes"
"""An image in memory, the path of a file, or a file's bytes (`images/in_memory.py`); for the client also a URL."""
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


class Options(Keywords, total=False):
    """The keywords of a client: also those of the files that a server makes, and of their number."""

    num_images: int | None
    output_format: ImageFormat | Literal["png", "jpeg", "jpg", "webp", "avif"] | None
    output_quality: int | None


SIDE = Integer(SIDE_MIN_PX, SIDE_MAX_PX)
SIDES = ("width", "height")
"""With which a size may be given instead."""
FILES = ("image", "mask")
"""Parameters that are image files, which the caller reads."""
_READ_SEPARATELY = ("size", *SIDES, "loras", *FILES)

_SIZE_ACCEPTED = 'a text such as "1024x1024", or (width, height)'
_LORA_ACCEPTED = '"name", ("name", 0.8), {"name": 0.8}, or a list of these'
_LORA_FORMS = f"LoRAs to apply: {_LORA_ACCEPTED}."

FORMS = {
    "size": f'The size in pixels, each side {SIDE_MIN_PX} to {SIDE_MAX_PX}: "1024x1024", "1024*1024" or (1024, 1024). '
    f"Default: that of `image`, else {DEFAULT_SIZE}.",
    "width": "With height, instead of a size.",
    "height": "With width, instead of a size.",
    "seed": f"{BY_NAME['seed'].description.partition(';')[0]}. Default, and −1: a random one, which the result has as "
    "`seed`.",
    "mask": "In the same forms, and of the size of `image`: white or transparent where `image` may change.",
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
}
"""What other libraries, and other parts of this one, call the keywords: for errors about unknown names."""


@dataclass(frozen=True, slots=True)
class KeywordSet:
    """The keywords of one kind of caller, with the descriptions of their forms and what other libraries call them."""

    names: tuple[str, ...]
    forms: Mapping[str, str]
    elsewhere: Mapping[str, str]

    def check_names(self, given: Collection[str]) -> None:
        """Raise InvalidInput on a keyword that is not one of these, with the name that was probably meant."""
        check_names(given, self.names, self.elsewhere)

    def read(
        self, options: Mapping[str, Any], lora_name: Callable[[object], object] = lambda given: given
    ) -> dict[str, Any]:
        """Read the keywords that are given into the values of `ImageRequest`, by their names in the API.

        Values are read as the API reads them (`parameter.Kind.read`), so that bounds and messages are the same; added
        are the forms that only Python has. `size` may come from `width` and `height`; `image` and `mask` stay as they
        are. `lora_name` turns the name of a LoRA, as it was given, into the API's. Raises InvalidInput, which names the
        keyword, its value and what is accepted.
        """
        self.check_names(options)
        given = {name: value for name, value in options.items() if value is not None}
        values = {name: given[name] for name in FILES if name in given}
        for name, value in given.items():
            if name not in _READ_SEPARATELY:
                kind = BY_NAME[name].kind
                values[name] = kind.read(name, _plain(value) if isinstance(kind, Integer | Number) else value)
        if (size := _size(given)) is not None:
            values["size"] = size
        if "loras" in given:
            values["loras"] = _loras(given["loras"], lora_name)
        return values

    def documented(self, function: F) -> F:
        """Give a method with `**options` the signature and the help of its keywords."""
        table = "\n".join(self._entry(name) for name in self.names)
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{table}"
        return self.spelled_out(function)

    def spelled_out(self, function: F) -> F:
        """Show the keywords in the signature of a method, with their defaults, as editors and `help` read it."""
        parameters = list(inspect.signature(function).parameters.values())  # type: ignore[arg-type]
        *own, last = (each.replace(annotation=inspect.Parameter.empty) for each in parameters)
        assert last.kind is inspect.Parameter.VAR_KEYWORD, f"{function} has no keywords to spell out"
        keyword = inspect.Parameter.KEYWORD_ONLY
        options = [inspect.Parameter(name, keyword, default=self._default(name)) for name in self.names]
        function.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        return function

    def _default(self, name: str) -> object:
        """The default that the signature shows: None where it follows from something else."""
        default = None if name in self.forms else BY_NAME[name].default
        return str(default) if isinstance(default, str) else default

    def _entry(self, name: str) -> str:
        text = self.forms.get(name) or BY_NAME[name].description
        parameter = BY_NAME.get(name)
        if parameter is not None and name != "seed":
            text += _bounds(parameter)
        return f"{name}\n{textwrap.indent(textwrap.fill(text, 80), '    ')}"


OF_PIPELINE = KeywordSet(
    names=tuple(Keywords.__annotations__),
    forms=FORMS
    | {
        "image": f"An image to start from: a PIL image, {arrays.ACCEPTED}, a path, or the bytes of a file.",
        "loras": f"{_LORA_FORMS} The names are those of the folder that `from_pretrained(loras=...)` was given.",
        "mode": "How much quality may be traded for speed. Default: that of the pipeline.",
    },
    elsewhere=CALLED_ELSEWHERE
    | {
        "output_format": 'the suffix in `image.save("fox.jpg")`',
        "output_quality": "`image.save(path, quality=90)`",
        "output_type": "`image.pixels`, `image.image`",
        "callback": "`stream`, which yields the progress",
        "callback_on_step_end": "`stream`, which yields the progress",
        "prompt_2": "`hidream.Prompts`, as the prompt",
        "prompt_3": "`hidream.Prompts`, as the prompt",
        "prompt_4": "`hidream.Prompts`, as the prompt",
        "prompts": "`hidream.Prompts`, as the prompt",
    },
)
"""What `hidream.Pipeline` takes."""
OF_CLIENT = KeywordSet(
    names=tuple(Options.__annotations__),
    forms=FORMS
    | {
        "image": f"An image to start from: a PIL image, {arrays.ACCEPTED}, a path, the bytes of a file, or a URL.",
        "loras": f"{_LORA_FORMS} The names are those that the server knows.",
    },
    elsewhere=CALLED_ELSEWHERE
    | {
        "format": "output_format",
        "quality": "output_quality",
        "callback": "`Task.events`, which yields the progress",
        "callback_on_step_end": "`Task.events`, which yields the progress",
    },
)
"""What the clients of a server take."""


def check_names(given: Collection[str], known: Sequence[str], elsewhere: Mapping[str, str]) -> None:
    """Raise InvalidInput on a keyword that is not `known`, with the name that was probably meant.

    `elsewhere` has what other names mean.
    """
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        suggestion = nearest(unknown, {**elsewhere, **{name: name for name in known}})
        raise InvalidInput(f"unknown keyword {unknown!r:.100}{suggestion}; accepted: {', '.join(known)}", field=unknown)


def _size(given: Mapping[str, Any]) -> Size | None:
    """Read the size, or the two sides; None if neither is given."""
    sides = [name for name in SIDES if name in given]
    if sides and "size" in given:
        raise InvalidInput(f"size and {sides[0]} are given; accepted: one of the two", field="size")
    if len(sides) == 1:
        (missing,) = set(SIDES) - set(sides)
        raise MissingInput(f"{missing} is absent; accepted: width and height together, or size", field=missing)
    if sides:
        return Size(*(SIDE.read(name, _plain(given[name])) for name in SIDES))
    return _read_size(given["size"]) if "size" in given else None


def _read_size(value: object) -> Size:
    match value:
        case Size(width, height) | (width, height):
            sides = [_plain(side) for side in (width, height)]
            if not all(type(side) is int for side in sides):
                raise refused("size", value, _SIZE_ACCEPTED)
            value = "{}*{}".format(*sides)
        case str():
            pass
        case _:
            raise refused("size", value, _SIZE_ACCEPTED)
    return BY_NAME["size"].kind.read("size", value)  # type: ignore[no-any-return]


def _loras(value: object, lora_name: Callable[[object], object]) -> tuple[LoraUse, ...]:
    uses = [use for entry in _entries(value) for use in _lora(entry, lora_name)]
    read: tuple[LoraUse, ...] = BY_NAME["loras"].kind.read("loras", uses)
    return read


def _entries(value: object) -> Sequence[object]:
    """The LoRAs in a list or a tuple; but ("name", 0.8) is one."""
    is_one = isinstance(value, tuple) and len(value) == 2 and isinstance(_plain(value[1]), int | float)
    return value if isinstance(value, list | tuple) and not is_one else [value]


def _lora(entry: object, lora_name: Callable[[object], object]) -> Iterator[dict[str, object]]:
    """Yield the API's form of an entry, {"name", "scale"}."""
    match entry:
        case LoraUse(name, weight) | (str() | os.PathLike() as name, weight):
            yield {"name": lora_name(name), "scale": _plain(weight)}
        case str() | os.PathLike():
            yield {"name": lora_name(entry)}
        case Mapping() if isinstance(entry.get("name"), str) or isinstance(entry.get("path"), str):
            yield dict(entry)
        case Mapping():
            for name, weight in entry.items():
                yield {"name": lora_name(name), "scale": _plain(weight)}
        case _:
            raise refused("loras", entry, _LORA_ACCEPTED)


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever was given
    """Turn a number of NumPy or torch into Python's."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _bounds(parameter: Parameter) -> str:
    """What a keyword may be, as sentences that follow its description."""
    text = ""
    if isinstance(parameter.kind, Choice):
        text = f" One of {', '.join(map(json.dumps, parameter.kind.values))}."
    elif isinstance(parameter.kind, Number | Integer):
        text = f" {_capital(parameter.kind.accepted)}."
    return text + (" Only of the variant full." if parameter.guided else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
