"""The inputs of "Generate on a server", derived from the declaration of a request (`hidream.request.ImageRequest`).

The names, bounds, choices, defaults and descriptions are the declaration's; a new parameter of the API becomes an input
here without a change. Added is only what a widget of ComfyUI needs: a value that stands for "not given", where the
default follows from something else (the model's number of steps, the size of `image`).

ComfyUI stores the values of widgets in a workflow by their order. So the order is that of `hidream.keywords.Keywords`
after LEADING, and a new keyword there goes to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from comfy_api.v0_0_2 import io

if TYPE_CHECKING:
    from hidream.parameter import Parameter

LEADING = ("negative_prompt", "width", "height", "seed", "num_images", "output_format", "output_quality")
"""Parameters that come first; the others follow in their own order."""
AUTOMATIC = "default"
"""What a choice shows for "not given"."""


@dataclass(frozen=True, slots=True)
class Widget:
    """An input, and the value with which it says that the parameter is not given."""

    name: str
    input: io.Input
    absent: object

    def given(self, value: object) -> bool:
        """Whether a value says something that the server would not assume; arrays do, if they are there."""
        return value is not None and (self.absent is None or value != self.absent)


@cache
def widgets() -> tuple[Widget, ...]:
    """Describe all inputs but the prompt, the server and the model."""
    from hidream.keywords import FILES, OF_CLIENT

    others = (name for name in OF_CLIENT.names if name not in (*LEADING, *FILES, "size"))
    made = [_widget(name) for name in (*LEADING, *others)]
    return (*made, *(_file(name) for name in FILES))


def keywords(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the values of the inputs into keywords of `hidream.AsyncClient`, without those that are not given.

    Raises InvalidInput for LoRAs that are not understood. `image` and `mask` stay as they are.
    """
    given = {each.name: values[each.name] for each in widgets() if each.given(values.get(each.name))}
    if "loras" in given:
        given["loras"] = loras(given["loras"])
    return given


def loras(text: str) -> list[tuple[str, float]]:
    """Read NAME or NAME:WEIGHT from each line."""
    from hidream.parameter import refused

    read = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, weight = line.rpartition(":") if ":" in line else (line, "", "1")
        try:
            read.append((name.strip(), float(weight)))
        except ValueError:
            raise refused("loras", line, "NAME or NAME:WEIGHT in each line, such as ink:0.8") from None
    return read


def _widget(name: str) -> Widget:
    from hidream.keywords import FORMS, SIDE, SIDES
    from hidream.request import BY_NAME
    from hidream.types import DEFAULT_SIZE

    if name in SIDES:
        about = f"{name.capitalize()} in pixels. 0 for both: the size of `image`, or {DEFAULT_SIZE} without one."
        return _whole_number(name, SIDE, getattr(DEFAULT_SIZE, name), about, optional=True)
    parameter = BY_NAME[name]
    about = FORMS.get(name) or parameter.schema()["description"]
    if parameter.guided:
        about += " Only of the model full."
    return _MAKERS[type(parameter.kind).__name__](name, parameter, about)


def _of_integer(name: str, parameter: Parameter, about: str) -> Widget:
    kind: Any = parameter.kind
    return _whole_number(name, kind, parameter.default, about, optional=parameter.default is None)


def _whole_number(name: str, kind: Any, default: Any, about: str, *, optional: bool) -> Widget:  # noqa: ANN401
    """A whole number; an optional one may be 0, below what is accepted."""
    absent = 0 if optional else default
    about = f"{about} 0: not given." if optional and "0 " not in about else about
    # ComfyUI shows "control after generate" beside a seed.
    seed = {"control_after_generate": True} if name == "seed" else {}
    made = io.Int.Input(
        name,
        default=absent if default is None else default,
        min=min(kind.smallest, absent),
        max=kind.largest,
        tooltip=about,
        **seed,
    )
    return Widget(name, made, absent)


def _of_number(name: str, parameter: Parameter, about: str) -> Widget:
    kind: Any = parameter.kind
    default, absent = parameter.default, parameter.default
    if default is None:  # the nearest whole number below what is accepted
        default = absent = 0.0 if kind.smallest > 0 else kind.smallest - 1.0
        about += f" {absent:g}: not given."
    smallest = min(kind.smallest, absent)
    made = io.Float.Input(name, default=default, min=smallest, max=kind.largest, step=0.01, round=0.001, tooltip=about)
    return Widget(name, made, absent)


def _of_choice(name: str, parameter: Parameter, about: str) -> Widget:
    kind: Any = parameter.kind
    options = list(dict.fromkeys(str(value) for value in kind.values.values()))
    default = AUTOMATIC if parameter.default is None else str(parameter.default)
    options = [AUTOMATIC, *options] if parameter.default is None else options
    return Widget(name, io.Combo.Input(name, options=options, default=default, tooltip=about), default)


def _of_boolean(name: str, parameter: Parameter, about: str) -> Widget:
    return Widget(name, io.Boolean.Input(name, default=parameter.default, tooltip=about), parameter.default)


def _of_text(name: str, parameter: Parameter, about: str) -> Widget:
    made = io.String.Input(name, default=parameter.default, multiline=True, tooltip=about, placeholder=name)
    return Widget(name, made, parameter.default)


def _of_loras(name: str, parameter: Parameter, about: str) -> Widget:
    about = f"{about} One on each line: NAME or NAME:WEIGHT, by the names that the server knows."
    made = io.String.Input(name, default="", multiline=True, tooltip=about, placeholder="LoRAs: ink:0.8")
    return Widget(name, made, "")


def _file(name: str) -> Widget:
    from hidream.request import BY_NAME

    kind = {"image": io.Image, "mask": io.Mask}[name]
    about = f"{BY_NAME[name].description.partition(':')[0].rstrip('.')}. It is uploaded."
    return Widget(name, kind.Input(name, optional=True, tooltip=about), None)


_MAKERS: dict[str, Callable[[str, Parameter, str], Widget]] = {
    "Integer": _of_integer,
    "Number": _of_number,
    "Choice": _of_choice,
    "Boolean": _of_boolean,
    "Text": _of_text,
    "Loras": _of_loras,
}
"""How an input is made, by the kind of the parameter; a kind that is not here is an error at the start."""
