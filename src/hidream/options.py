"""The keywords of a generation, as `hidream.Client` and the library take them: their types, their check, their help.

`request.ImageRequest` declares what each parameter is. `Options` repeats only the names and the types, because a type
checker cannot read them from there; a test compares both. Standard library only.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar

from hidream.errors import InvalidInput
from hidream.parameter import Integer, Parameter, refused
from hidream.request import BY_NAME, PARAMETERS, LoraUse
from hidream.types import SIDE_MAX_PX, SIDE_MIN_PX, Size

if TYPE_CHECKING:
    from typing import TypeAlias

    from PIL import Image

    Picture: TypeAlias = "Image.Image | Array | os.PathLike[str] | bytes | str"
    """An image to start from: an image of Pillow, an array of uint8, a path, a file's bytes or a URL."""

    Lora: TypeAlias = "str | tuple[str, float] | LoraUse | Mapping[str, Any]"
    """A LoRA: its name, its name and weight, {name: weight}, or an object of the API."""


class Array(Protocol):
    """An array, such as numpy's, which this module does not import."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


DELIVERY = ("enable_base64_output", "enable_sync_mode")
"""Parameters that say how an answer is delivered, which the client decides itself."""
FILES = ("image", "mask")
"""Parameters that are image files."""
OFFERED = tuple(each for each in PARAMETERS if each.name not in ("prompt", *DELIVERY))
"""The parameters that are keywords."""


class Options(TypedDict, total=False):
    """The parameters of a generation, by the names of the API; one that is None has its default."""

    size: str | tuple[int, int] | Size | None
    width: int | None
    height: int | None
    seed: int | None
    enable_safety_checker: bool | None
    output_format: Literal["png", "jpeg", "jpg", "webp", "avif"] | None
    num_images: int | None
    output_quality: int | None
    image: Picture | None
    strength: float | None
    mask: Picture | None
    num_inference_steps: int | None
    shift: float | None
    sampler: Literal["flash", "unipc", "euler"] | None
    conformance: Literal["diffusers", "official"] | None
    render: Literal["best", "scaled", "native", "refine", "reference"] | None
    mode: Literal["exact", "balanced", "turbo"] | None
    loras: Lora | Sequence[Lora] | None
    negative_prompt: str | None
    guidance_scale: float | None


SIDES = ("width", "height")
"""With which a size may be given instead."""

_NAMES = {each.name: each for each in OFFERED}
_SIDE = Integer(SIDE_MIN_PX, SIDE_MAX_PX)
_OTHER_NAMES = {each.attribute: each.name for each in OFFERED if each.attribute != each.name} | {
    "negative": "negative_prompt",
    "lora": "loras",
    "n": "num_images",
    "num_images_per_prompt": "num_images",
    "format": "output_format",
}
"""What people call a parameter in other places, for the suggestion of an error."""

F = TypeVar("F", bound=Callable[..., Any])


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the options that are given, by the names of the API, in the types of `ImageRequest`.

    `image` and `mask` stay as they are. Raises InvalidInput, which names an unknown option, or the value of a known one
    and what is accepted.
    """
    given = _with_size({name: value for name, value in options.items() if value is not None})
    for name in given:
        if name not in _NAMES:
            raise InvalidInput(f"{name} is not a parameter{_suggestion(name)}", field=name)
    return {name: _read(_NAMES[name], value) for name, value in given.items()}


def spelled_out(function: F) -> F:
    """Show the keywords that `**options` stands for in `help(function)`, with their defaults and descriptions."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    sides = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation="int") for name in SIDES]
    own += [*map(_keyword, OFFERED), *sides]
    function.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
    function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{described()}"
    return function


def described() -> str:
    """Describe each keyword in a line, from the declaration."""
    lines = [f"{each.name}: {each.schema()['description']} Accepted: {_accepted(each)}." for each in OFFERED]
    return "\n".join([*lines, "width, height: Both, in place of size."])


def _with_size(given: dict[str, Any]) -> dict[str, Any]:
    """Turn width and height into a size."""
    sides = {name: _SIDE.read(name, given[name]) for name in SIDES if name in given}
    if not sides:
        return given
    if "size" in given or len(sides) < len(SIDES):
        what = "beside size" if "size" in given else "alone"
        first = next(iter(sides))
        raise InvalidInput(f"{first} is given {what}; accepted: width and height, or size", field=first)
    return {name: value for name, value in given.items() if name not in SIDES} | {"size": tuple(sides.values())}


def _read(parameter: Parameter, value: Any) -> Any:  # noqa: ANN401 - the value of any parameter
    if parameter.name in FILES:
        return value
    if parameter.name == "size":
        return parameter.kind.read("size", _size_text(value))
    if parameter.name == "loras":
        return parameter.kind.read("loras", [_lora(each) for each in _entries(value)])
    return parameter.kind.read(parameter.name, value)


def _size_text(value: object) -> object:
    """Write a size as the API does; what is no size is left to the error of its kind."""
    if isinstance(value, Size):
        return str(value)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return f"{value[0]}*{value[1]}"
    if isinstance(value, str):
        return value
    raise refused("size", value, f"(width, height) or a text such as '1024x1024', each {SIDE_MIN_PX} to {SIDE_MAX_PX}")


def _entries(value: object) -> list[object]:
    """List LoRAs, of which one may stand alone, and several in a mapping of names to weights."""
    alone = isinstance(value, str | LoraUse | Mapping) or (
        isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int | float)
    )
    if not alone and not isinstance(value, list | tuple):
        raise refused("loras", value, "names, such as 'ink' or ['ink'], or names and weights, such as {'ink': 0.8}")
    each: list[Any] = [value] if alone else list(value)  # type: ignore[call-overload]
    return [lora for entry in each for lora in (entry.items() if _are_weights(entry) else [entry])]


def _are_weights(entry: object) -> bool:
    return isinstance(entry, Mapping) and not {"name", "path"} & entry.keys()


def _lora(value: object) -> object:
    """Write a LoRA as the API does."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, LoraUse):
        return {"name": value.name, "scale": value.weight}
    if isinstance(value, tuple | list) and len(value) == 2:
        return {"name": value[0], "scale": value[1]}
    return dict(value) if isinstance(value, Mapping) else value


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, _NAMES, n=1)
    nearest = _OTHER_NAMES.get(name) or (close[0] if close else "")
    return f"; did you mean {nearest}?" if nearest else f"; accepted: {', '.join(_NAMES)}"


def _keyword(parameter: Parameter) -> inspect.Parameter:
    hint = Options.__annotations__[parameter.name]
    default = BY_NAME[parameter.name].default
    return inspect.Parameter(
        parameter.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default if default in (None, ()) or isinstance(default, bool | int | float) else str(default),
        annotation=getattr(hint, "__forward_arg__", hint),
    )


def _accepted(parameter: Parameter) -> str:
    if parameter.name in FILES:
        return "an image of Pillow, an array, a path, the bytes of a file, or a URL"
    return parameter.kind.accepted
