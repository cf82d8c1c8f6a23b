"""Generates the parameter tables of docs/API.md from the declarations.

`python tests/parameter_tables.py FILE` (`make tables`) writes them into a page, between the comments that name
them. A test checks that the page is up to date.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hidream.parameter import Choice, Kind, Parameter
from hidream.request import Dimensions, Loras
from hidream.server.parameters import V2, V3, WIRE, Api, Ratio, Sides
from hidream.types import SAMPLING_PRESETS, SamplingPreset, Variant

_PRESET_FIELDS = {field.name for field in dataclasses.fields(SamplingPreset)}


def filled(page: str) -> str:
    """Return a page with the current tables, each between its comments."""
    for name, documented in (("documented", True), ("further", False)):
        table = _table(parameter for parameter in WIRE if parameter.documented is documented)
        begin, end = f"<!-- {name} parameters, made by tests/parameter_tables.py -->", "<!-- end -->"
        between = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
        page = between.sub(lambda _, text=f"{begin}\n{table}{end}": text, page)
    return page


def _table(parameters: Iterable[Parameter]) -> str:
    rows = (f"| `{each.name}` | {_default(each)} | {_accepted(each)} |\n" for each in parameters)
    return "| parameter | default | accepted |\n|---|---|---|\n" + "".join(rows)


def _default(parameter: Parameter) -> str:
    v2, v3 = (api.defaults.get(parameter.attribute, parameter.default) for api in (V2, V3))
    if v2 != v3:
        return f"v2 {_value(v2)}, v3 {_value(v3)}"
    if parameter.attribute in _PRESET_FIELDS:
        return _of_variants(parameter)
    return parameter.shown_default or _value(v3)


def _of_variants(parameter: Parameter) -> str:
    by_value: dict[str, list[str]] = {}
    for variant in Variant:
        if variant.guided or not parameter.guided:
            by_value.setdefault(_value(getattr(SAMPLING_PRESETS[variant], parameter.attribute)), []).append(
                variant.title()
            )
    return ", ".join(f"{' and '.join(variants)} {value}" for value, variants in by_value.items())


def _value(value: Any) -> str:
    if value is None or value in ("", ()):
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}".replace("-", "−") if isinstance(value, int | float) else f"`{value}`"


def _accepted(parameter: Parameter) -> str:
    ranges = [_range(api, parameter) for api in (V2, V3)]
    accepted = ranges[1] if not parameter.documented or ranges[0] == ranges[1] else f"v2 {ranges[0]}; v3 {ranges[1]}"
    notes = [
        accepted,
        parameter.notes,
        "checked, then ignored by Dev and Fast, with a warning" if parameter.guided else "",
    ]
    return "; ".join(note for note in notes if note)


def _range(api: Api, parameter: Parameter) -> str:
    kind: Kind = api.kind(parameter.name)
    match kind:
        case Choice():
            return ", ".join(f"`{name}`" for name in kind.values)
        case Dimensions():
            return f"`W*H` or `WxH`, each side {kind.smallest} to {kind.largest} pixels"
        case Loras():
            return f'a list of up to {kind.most} `{{"name": "ink", "scale": 0.8}}`'
        case Ratio():
            return kind.accepted.replace("W:H", "`W:H`").replace("auto", "`auto`")
        case Sides():
            return '`{"width": 640, "height": 360}`'
    return kind.accepted.replace("-", "−")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
