"""What a parameter can be: how its value is read, described and kept, and what an error about it says.

A declaration (`request.ImageRequest`) puts one `Parameter` beside each of its fields. Everything else is derived from
these: the parsers of the API, its documents, the row in the database, the flags of the command line. This file knows
no parameter by name. Standard library only.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from hidream.errors import InvalidInput, MissingInput

Schema = dict[str, Any]
"""A JSON schema."""

_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
"""What JSON can write but no UTF-8 file or PostgreSQL text can hold."""


class OverlongText:
    """A text that is too long to be held in memory: all that an error needs of it."""

    @property
    def size(self) -> int:
        """How many characters it has."""
        raise NotImplementedError


class Kind(Protocol):
    """The type of a parameter, with its bounds."""

    @property
    def accepted(self) -> str:
        """What is accepted, for errors and documents."""

    def read(self, field: str, value: Any) -> Any:  # noqa: ANN401 - what JSON says
        """Read a value of JSON, not null. Raises InvalidInput, which names field, value and what is accepted."""

    def schema(self) -> Schema:
        """Describe the values as a JSON schema."""

    def to_json(self, value: Any) -> Any:  # noqa: ANN401
        """Give the value as a row keeps it."""

    def from_json(self, value: Any) -> Any:  # noqa: ANN401
        """Undo `to_json`."""


class PlainJson:
    """Kinds whose values are JSON already."""

    __slots__ = ()

    def to_json(self, value: Any) -> Any:  # noqa: ANN401
        """Keep the value."""
        return value

    def from_json(self, value: Any) -> Any:  # noqa: ANN401
        """Take the value."""
        return value


@dataclass(frozen=True, slots=True)
class Text(PlainJson):
    """A text that a file and a database can hold; unless it `may_be_empty`, one with something in it."""

    longest: int
    may_be_empty: bool = True
    what: str = ""

    @property
    def accepted(self) -> str:
        """How long it may be."""
        least = "up to" if self.may_be_empty else "a text of 1 to"
        return self.what or f"{least} {self.longest} characters"

    def read(self, field: str, value: object) -> str:
        """Read a text. Raises InvalidInput, or MissingInput for an empty one."""
        if not isinstance(value, str):
            if isinstance(value, OverlongText):
                raise InvalidInput(f"{field} has {value.size} characters; accepted: {self.accepted}", field=field)
            raise refused(field, value, self.accepted)
        if not self.may_be_empty and not value.strip():
            raise MissingInput(f"{field} is empty; accepted: {self.accepted}", field=field)
        if len(value) > self.longest:
            raise InvalidInput(f"{field} has {len(value)} characters; accepted: {self.accepted}", field=field)
        if not value.isascii() or "\0" in value:
            self._check_characters(field, value)
        return value

    def _check_characters(self, field: str, value: str) -> None:
        if bad := _NO_CHARACTER.search(value):
            raise InvalidInput(
                f"{field} has {bad[0]!r} at {bad.start()}; accepted: {self.accepted}, no NUL and no lone surrogate",
                field=field,
            )

    def schema(self) -> Schema:
        """Describe it."""
        shortest = {} if self.may_be_empty else {"minLength": 1}
        return {"type": "string", **shortest, "maxLength": self.longest}


@dataclass(frozen=True, slots=True)
class Boolean(PlainJson):
    """True or false."""

    accepted: ClassVar[str] = "true or false"

    def read(self, field: str, value: object) -> bool:
        """Read true or false. Raises InvalidInput."""
        if not isinstance(value, bool):
            raise refused(field, value, self.accepted)
        return value

    def schema(self) -> Schema:
        """Describe it."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Integer(PlainJson):
    """A whole number in a range."""

    smallest: int
    largest: int

    @property
    def accepted(self) -> str:
        """The range."""
        return f"a whole number from {self.smallest} to {self.largest}"

    def read(self, field: str, value: object) -> int:
        """Read a whole number, 7.0 included. Raises InvalidInput."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not self.smallest <= value <= self.largest:
            raise refused(field, value, self.accepted)
        return value

    def schema(self) -> Schema:
        """Describe it."""
        return {"type": "integer", "minimum": self.smallest, "maximum": self.largest}


@dataclass(frozen=True, slots=True)
class Number(PlainJson):
    """A number in a range."""

    smallest: float
    largest: float

    @property
    def accepted(self) -> str:
        """The range."""
        return f"a number from {self.smallest:g} to {self.largest:g}"

    def read(self, field: str, value: object) -> float:
        """Read a number. Raises InvalidInput."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.smallest <= value <= self.largest:
            raise refused(field, value, self.accepted)
        return float(value)

    def schema(self) -> Schema:
        """Describe it."""
        return {"type": "number", "minimum": self.smallest, "maximum": self.largest}


@dataclass(frozen=True, slots=True, init=False)
class Choice:
    """One of an enumeration's values; `also` are other names of some of them."""

    values: Mapping[str, StrEnum]

    def __init__(self, enumeration: type[StrEnum], names: Mapping[str, StrEnum] | None = None) -> None:
        object.__setattr__(self, "values", names or {each.value: each for each in enumeration})

    @property
    def accepted(self) -> str:
        """All names."""
        return ", ".join(self.values)

    def read(self, field: str, value: object) -> StrEnum:
        """Read a name. Raises InvalidInput."""
        found = self.values.get(value) if isinstance(value, str) else None
        if found is None:
            raise refused(field, value, self.accepted)
        return found

    def schema(self) -> Schema:
        """Describe it."""
        return {"type": "string", "enum": list(self.values)}

    def to_json(self, value: StrEnum | None) -> StrEnum | None:
        """Keep the value, which JSON writes as its text."""
        return value

    def from_json(self, value: str | None) -> StrEnum | None:
        """Take the value."""
        return None if value is None else self.values[value]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandFlag:
    """How the command line says a parameter: `short` are names such as -n. Empty `help`: the description."""

    name: str
    help: str = ""
    metavar: str | None = None
    short: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a generation, declared once.

    `description` may name fields of the kind, as in "{smallest}". `name` is its name in the API and in the row, where
    it is not the field's. `default` is what the API assumes, where it is not the field's. `documented`: v2's documents
    have it. `guided`: only a variant that was not distilled uses it. `flag`: how the command line says it. `notes` are
    what docs/API.md adds to `accepted`, in Markdown; `shown_default` what it shows for a default that is None.
    """

    kind: Kind
    description: str
    _: dataclasses.KW_ONLY
    name: str = ""
    attribute: str = ""
    default: Any = None
    documented: bool = False
    guided: bool = False
    flag: CommandFlag | None = None
    notes: str = ""
    shown_default: str = ""

    def schema(self, kind: Kind | None = None, default: object = None) -> Schema:
        """Describe it as a JSON schema, by its own kind and default or others."""
        described = (kind or self.kind).schema()
        bounds = {field.name: getattr(kind or self.kind, field.name) for field in dataclasses.fields(kind or self.kind)}  # type: ignore[arg-type]
        described["description"] = self.description.format(**bounds) if "{" in self.description else self.description
        default = self.default if default is None else default
        if default not in (None, "", ()):
            described["default"] = default if isinstance(default, bool | int | float) else str(default)
        return described


def declared(dataclass_type: type) -> tuple[Parameter, ...]:
    """Collect the parameters beside the fields of a dataclass, in their order."""
    hints = typing.get_type_hints(dataclass_type, include_extras=True)
    return tuple(
        dataclasses.replace(
            row,
            attribute=field.name,
            name=row.name or field.name,
            default=row.default if field.default is dataclasses.MISSING else field.default,
        )
        for field in dataclasses.fields(dataclass_type)
        for row in getattr(hints[field.name], "__metadata__", ())
    )


def refused(field: str, value: object, accepted: str) -> InvalidInput:
    """Make the error of a value that is not accepted."""
    try:
        shown = f"{value!r:.100}"
    except ValueError:  # Python does not write whole numbers of thousands of digits
        shown = f"a value of {type(value).__name__} that is too long to show"
    return InvalidInput(f"{field} is {shown}; accepted: {accepted}", field=field)


def in_words(names: Iterable[str], last: str = "and") -> str:
    """List names as a sentence does: "a, b and c"."""
    *others, end = names
    return f"{', '.join(others)} {last} {end}" if others else end


def by_name(parameters: Collection[Parameter]) -> dict[str, Parameter]:
    """Index parameters by their names in the API."""
    return {parameter.name: parameter for parameter in parameters}
