"""Parameters from texts and files: rows of a file of prompts (lines, JSONL, CSV), flags, and values of a grid.

A row is a mapping of the API's names to JSON values, read by the kinds that `request.PARAMETERS` declares, so that
bounds and messages are those of the API. Everything is checked before a model is loaded or anything is sent.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hidream.commands import values
from hidream.commands.grammar import suggestion
from hidream.errors import InvalidInput, MissingInput
from hidream.parameter import Boolean, Choice, Integer, Number, Parameter
from hidream.request import BY_NAME, MASK_ALONE, PARAMETERS, Dimensions, Loras, LoraUse, Source

DELIVERY = ("enable_base64_output", "enable_sync_mode")
"""Parameters of HTTP, which no row has."""
FILES = ("image", "mask")
OFFERED = tuple(parameter for parameter in PARAMETERS if parameter.name not in DELIVERY)
_NAMES = {name: each for each in OFFERED for name in (each.name, each.attribute)}
_NAMES |= {each.flag.name.lstrip("-").replace("-", "_"): each for each in OFFERED if each.flag}
"""The parameters by all their names: the API's, the field's and the flag's."""
PROMPTS_MAX_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Row:
    """What one row says: `parameters` by the API's names; `where` it stands, for errors."""

    parameters: Mapping[str, Any]
    where: str = ""


def read_rows(path: Path) -> list[Row]:
    """Read a file of prompts; `-` is standard input.

    `.jsonl` has one object per line, `.csv` and `.tsv` a head with names; any other file has one prompt per line, where
    empty lines and those that begin with # are left out. Standard input, and a file of another name, that begins with
    `{` is JSONL. Raises InvalidInput, which names the line.
    """
    name = "standard input" if str(path) == "-" else path.name
    text = _read(path, name)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows = _csv(text, name, "\t" if suffix == ".tsv" else ",")
    elif suffix in (".jsonl", ".ndjson") or text.lstrip().startswith("{"):
        rows = _jsonl(text, name)
    else:
        rows = _lines(text, name)
    found = [_anchored(row, path) for row in rows]
    if not found:
        raise InvalidInput(f"{name} has no prompt; accepted: one prompt per line, JSONL, or CSV with a head")
    return found


def _read(path: Path, name: str) -> str:
    try:
        opened: AbstractContextManager[BinaryIO] = (
            nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb")
        )
        with opened as file:
            data = file.read(PROMPTS_MAX_BYTES + 1)  # not all of it: a device never ends
    except OSError as error:
        raise InvalidInput(f"--prompts: {path} cannot be read: {error.strerror}") from error
    if len(data) > PROMPTS_MAX_BYTES:
        raise InvalidInput(f"{name} has more than {PROMPTS_MAX_BYTES:,} bytes; accepted: fewer")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} is not UTF-8 (byte {error.start}); accepted: text in UTF-8") from error


def _lines(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _row({"prompt": line.strip()}, f"{name} line {number}", typed=False)


def _jsonl(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            values = json.loads(line, object_pairs_hook=_once_each)
        except InvalidInput as error:
            raise InvalidInput(f"{where}: {error.message}", field=error.field) from error
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{where} is not JSON: {error}") from error
        if isinstance(values, str):
            values = {"prompt": values}
        if not isinstance(values, dict):
            raise InvalidInput(
                f'{where} is {values!r:.100}; accepted: an object such as {{"prompt": "a fox", "seed": 7}}'
            )
        yield _row(values, where, typed=False)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON. Raises InvalidInput if a name is in it twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _twice(next(name for name in names if names.count(name) > 1))
    return found


def _twice(name: str) -> InvalidInput:
    return InvalidInput(f"{name!r:.100} is given twice; accepted: once", field=name)


def _csv(text: str, name: str, delimiter: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        head = [name.strip() for name in reader.fieldnames or ()]
        if name_twice := next((each for each in head if each and head.count(each) > 1), ""):
            raise InvalidInput(f"{name} line 1: {_twice(name_twice).message}", field=name_twice)
        _check_head(head, f"{name} line 1")
        for values in reader:
            where = f"{name} line {reader.line_num}"
            if None in values:
                raise InvalidInput(f"{where} has more cells than the head; accepted: quotes around texts with commas")
            yield _row({key.strip(): cell for key, cell in values.items() if cell not in (None, "")}, where, typed=True)
    except csv.Error as error:
        raise InvalidInput(f"{name} line {reader.line_num}: {error}") from error


def _check_head(head: list[str], where: str) -> None:
    for each in filter(None, head):
        try:
            parameter(each)
        except InvalidInput as error:
            raise InvalidInput(f"{where}: {error.message}", field=error.field) from error


def _row(values: Mapping[str, Any], where: str, *, typed: bool) -> Row:
    try:
        read_values: dict[str, Any] = {}
        for name, value in values.items():
            if value is not None:
                read_name, read_value = read(name, value, typed=typed)
                if read_name in read_values:
                    raise _twice(name)
                read_values[read_name] = read_value
        return Row(read_values, where)
    except InvalidInput as error:
        raise type(error)(f"{where}: {error.message}" if where else error.message, field=error.field) from error


def _anchored(row: Row, path: Path) -> Row:
    """Take paths of images as relative to the folder of the file that names them."""
    files = {name: str(path.parent / row.parameters[name]) for name in FILES if name in row.parameters}
    return Row({**row.parameters, **files}, row.where) if files and str(path) != "-" else row


def parameter(name: str) -> Parameter:
    """Find a parameter by any of its names. Raises InvalidInput, with the nearest name."""
    found = _NAMES.get(name.strip().lower().replace("-", "_"))
    if found is None:
        near = suggestion(name, _NAMES) or f"; accepted: {', '.join(each.name for each in OFFERED)}"
        raise InvalidInput(f"{name!r:.100} is no parameter{near}", field=name)
    return found


def read(name: str, value: Any, *, typed: bool, label: str = "") -> tuple[str, Any]:  # noqa: ANN401 - what JSON says
    """Read a value of a parameter: `typed` as text by a person, or a value of JSON. Return its API name and JSON value.

    Raises InvalidInput, which calls the parameter `label`, by default the name that was given.
    """
    found = parameter(name)
    kind = found.kind
    try:
        value = _of_text(found, value) if typed and isinstance(value, str) else value
        if isinstance(kind, Choice) and isinstance(value, str):
            value = value.lower()
        read = kind.read(label or name, value)
    except values.Refused as error:
        raise InvalidInput(f"{label or name}: {error}", field=name) from error
    return found.name, _to_json(kind, read)


def _to_json(kind: Any, value: Any) -> Any:  # noqa: ANN401
    return str(value) if isinstance(kind, Choice) else kind.to_json(value)


def _of_text(found: Parameter, text: str) -> Any:  # noqa: ANN401
    """Convert what a person typed to a value of JSON."""
    match found.kind:
        case Integer():
            return values.integer(text.strip())
        case Number():
            return values.number(text.strip())
        case Boolean():
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
                text.strip().lower(), text
            )
        case Loras():
            return [_lora(values.lora(each.strip())) for each in text.split(";") if each.strip()]
        case Source() | Dimensions():
            return text.strip()
        case _:
            return text


def _lora(use: LoraUse) -> dict[str, Any]:
    return {"name": use.name, "scale": use.weight}


def of_flags(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the values of flags, which click has converted, into values of JSON. Raises InvalidInput."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        flag = BY_NAME[name].flag
        assert flag is not None, f"{name} has a flag"
        plain = str(value) if isinstance(value, Path) else value
        if name == "loras":
            plain = [_lora(use) for use in value]
        found |= dict([read(name, plain, typed=False, label=flag.name)])
    return found


def check(row: Mapping[str, Any], where: str) -> None:
    """Check a request, which flags, rows, the axes of a grid and another image have made. Raises InvalidInput."""
    prefix = f"{where}: " if where else ""
    if "prompt" not in row:
        raise MissingInput(f"{prefix}prompt is absent; accepted: a text that describes the image", field="prompt")
    _row(row, where, typed=False)
    if "mask" in row and "image" not in row:
        raise MissingInput(f"{prefix}{MASK_ALONE}", field="mask")
