"""Flags that are parameters of a generation: derived from `request.PARAMETERS`, which declares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from hidream.commands import values
from hidream.commands.grammar import Flag, Given
from hidream.commands.setting_flags import FORMER
from hidream.commands.values import PATH, TEXT, OneOf, Value
from hidream.parameter import Choice, CommandFlag, Integer, Number, Parameter, Text
from hidream.request import PARAMETERS, Dimensions, Loras, Source

READERS: Mapping[type, click.ParamType[Any]] = {
    Text: TEXT,
    Integer: Value(values.integer, "integer"),
    Number: Value(values.number, "number"),
    Source: PATH,
    Dimensions: Value(values.text, "size"),
    Loras: Value(values.lora, "lora"),
}
"""The type of a flag for each kind of parameter."""
FLAGS = {parameter.name: parameter.flag for parameter in PARAMETERS if parameter.flag is not None}
"""The flags of the parameters that have one, by their names in the API."""


def parameter_flag(parameter: Parameter, flag: CommandFlag, **options: Any) -> Flag:  # noqa: ANN401
    """Declare the flag of a parameter, under the name of the request's field; None or () if it is not given."""
    kind = parameter.kind
    names = [flag.name, *flag.short, parameter.attribute]
    also = {f"--{name.replace('_', '-')}" for name in (parameter.name, parameter.attribute)}
    also -= {flag.name, *(name for former in FORMER.values() for name in former)}
    about = (flag.help or parameter.description).replace("%(default)s", str(parameter.default))
    if isinstance(kind, Choice):
        options.setdefault("type", OneOf(kind.values.values(), {k: str(v) for k, v in kind.values.items()}))
    else:
        options = {"type": READERS[type(kind)], "metavar": flag.metavar or flag.name.lstrip("-").upper()} | options
    return Flag(names, also=sorted(also), multiple=isinstance(kind, Loras), help=about, **options)


def parameter_flags(**own: Mapping[str, Any]) -> dict[str, click.Parameter]:
    """Declare all of them, by the names of the fields; `own` has options of click for single ones."""
    return {
        each.attribute: parameter_flag(each, each.flag, **own.get(each.attribute, {}))
        for each in PARAMETERS
        if each.flag is not None
    }


def parameters_of(given: Given) -> dict[str, Any]:
    """The parameters that were given, by their names in the API."""
    named = {each.name: getattr(given, each.attribute) for each in PARAMETERS if each.flag is not None}
    return {name: value for name, value in named.items() if value not in (None, ())}
