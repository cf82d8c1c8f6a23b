"""The conversion of typed texts to values: each reader raises Refused, which names the text and what is accepted."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from hidream.commands.grammar import suggestion
from hidream.errors import InvalidInput
from hidream.request import LoraUse
from hidream.types import PRIORITY_MAX, SEED_MAX

GIGABYTES = r"[1-9]\d{0,4}(?:\.\d+)?"
GIGABYTES_UNIT = r"(?: ?[gG](?:[bB])?)?"
HOST_SMALLEST_GB = 4
"""The least host memory of a plan: the system itself takes 3 GB (`model/memory/candidates.HOST_RESERVE_BYTES`)."""
SEEDS_MAX = 10_000


class Refused(ValueError):
    """A text that is not accepted."""

    def __init__(self, text: str, what: str, accepted: str) -> None:
        super().__init__(f"{text!r:.100} is not {what}; accepted: {accepted}")


class Value(click.ParamType[Any]):
    """A type of click that converts with a reader; `path` lets shells complete file names."""

    def __init__(self, read: Callable[[str], Any], name: str = "value", *, path: bool = False) -> None:
        self._read, self.name, self._path = read, name, path

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Convert a text; other values are defaults."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except Refused as error:
            self.fail(str(error), param, ctx)
        except InvalidInput as error:
            self.fail(error.message, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete file names in the shell, and nothing else."""
        return [CompletionItem(incomplete, type="file")] if self._path else []


class OneOf(click.ParamType[Any]):
    """One of some names, in capitals or not; converts it to `values[name]`."""

    name = "choice"

    def __init__(self, values: Iterable[Any], also: dict[str, str] | None = None) -> None:
        self.values = {str(value): value for value in values}
        self._also = also or {}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Find the value of a name."""
        if not isinstance(value, str):
            return value
        name = value.strip().lower()
        found = self.values.get(self._also.get(name, name))
        if found is None:
            near = suggestion(value, self.values)
            self.fail(f"{value!r:.100} is not one of the choices; accepted: {', '.join(self.values)}{near}", param, ctx)
        return found

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Show the names."""
        return f"[{'|'.join(self.values)}]"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete a name."""
        return [CompletionItem(name) for name in self.values if name.startswith(incomplete.lower())]


def text(typed: str) -> str:
    """Refuse surrogates: bytes that are not UTF-8 become surrogates, which neither tokenizers nor SQLite accept."""
    try:
        typed.encode()
    except UnicodeEncodeError:
        raise Refused(typed, "UTF-8", "text in UTF-8") from None
    return typed


def path(typed: str) -> Path:
    """Read the path of a file or folder."""
    if not typed:
        raise Refused(typed, "a path", "the path of a file or folder")
    return Path(text(typed))


def integer(typed: str) -> int:
    """Read a whole number."""
    try:
        return int(typed)
    except ValueError:
        raise Refused(typed, "a whole number", "such as 28") from None


def number(typed: str) -> float:
    """Read a number."""
    try:
        return float(typed)
    except ValueError:
        raise Refused(typed, "a number", "such as 0.8") from None


def seed(typed: str) -> int:
    """Read a seed; -1 is a random one."""
    if not re.fullmatch(r"-1|[0-9]{1,20}", typed) or int(typed) > SEED_MAX:
        raise Refused(typed, "a seed", f"-1 to {SEED_MAX}")
    return int(typed)


def seed_or_step(typed: str) -> int | str:
    """Read a seed, or a step such as +1 from another seed, which stays a text."""
    return typed if re.fullmatch(r"\+[0-9]{1,10}", typed) else seed(typed)


def seeds(typed: str) -> tuple[int, ...]:
    """Read seeds such as 1-9 or 3,7,11."""
    found: list[int] = []
    for each in typed.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,10})(?:\s*-\s*([0-9]{1,10}))?\s*", each)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last <= SEED_MAX or last - first >= SEEDS_MAX:
            raise Refused(typed, "a list of seeds", f"such as 1-9 or 3,7,11; up to {SEEDS_MAX} of 0 to {SEED_MAX}")
        found += range(first, last + 1)
    return tuple(dict.fromkeys(found))


def lora(typed: str) -> LoraUse:
    """Read NAME or NAME:WEIGHT; a file name may contain colons."""
    name, _, weight = typed.rpartition(":") if ":" in typed else (typed, "", "")
    if not name:
        raise Refused(typed, "a LoRA", "NAME or NAME:WEIGHT")
    return LoraUse(text(name), number(weight or "1"))


def some_of(names: Collection[str], what: str) -> Callable[[str], tuple[str, ...]]:
    """Make the reader of a list of names, separated by commas."""

    def read(typed: str) -> tuple[str, ...]:
        given = tuple(each.strip().lower() for each in typed.split(","))
        if not set(given) <= set(names):
            raise Refused(typed, what, f"some of {', '.join(names)}, separated by commas")
        return given

    return read


def limit(typed: str) -> int:
    """Read a limit of a key."""
    if not re.fullmatch(r"\d{1,15}", typed, re.ASCII):
        raise Refused(typed, "a limit", "a whole number, 0 for none")
    return int(typed)


def priority(typed: str) -> int:
    """Read the priority of a key."""
    if not re.fullmatch(r"[-+]?\d", typed, re.ASCII) or abs(int(typed)) > PRIORITY_MAX:
        raise Refused(typed, "a priority", f"a whole number from {-PRIORITY_MAX} to {PRIORITY_MAX}")
    return int(typed)


def hours(typed: str) -> int:
    """Read an overlap of two secrets."""
    if not re.fullmatch(r"\d{1,3}", typed, re.ASCII) or int(typed) > 168:
        raise Refused(typed, "an overlap", "hours, from 0 to 168")
    return int(typed)


def ago(typed: str) -> float:
    """Convert a time before now to seconds."""
    match = re.fullmatch(r"(\d{1,5})([hdw])", typed, re.ASCII)
    if not match:
        raise Refused(typed, "a time before now", "hours, days or weeks such as 12h, 7d or 4w")
    return int(match[1]) * {"h": 3600.0, "d": 86_400.0, "w": 604_800.0}[match[2]]


def cards(typed: str) -> list[float]:
    """Read the memory of cards in GB, such as 12,16 or 12GB."""
    one = f"({GIGABYTES}){GIGABYTES_UNIT}"
    if not re.fullmatch(f"{one}(?:,{one})*", typed, re.ASCII):
        raise Refused(typed, "a list of sizes", "gigabytes such as 12,16,24")
    return [float(size) for size in re.findall(one, typed)]


def host(typed: str) -> float:
    """Read a size of host memory in GB."""
    match = re.fullmatch(f"({GIGABYTES}){GIGABYTES_UNIT}", typed, re.ASCII)
    if not match or float(match[1]) < HOST_SMALLEST_GB:
        raise Refused(typed, "a size of host memory", f"gigabytes, {HOST_SMALLEST_GB} or more")
    return float(match[1])


def nbytes(typed: str) -> int:
    """Read a size such as 500MB, in bytes."""
    match = re.fullmatch(r"([1-9]\d{0,4})(KB|MB|GB)", typed.upper(), re.ASCII)
    if not match:
        raise Refused(typed, "a size", "such as 500MB or 5GB")
    return int(match[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]]


TEXT, PATH = Value(text, "text"), Value(path, "path", path=True)
