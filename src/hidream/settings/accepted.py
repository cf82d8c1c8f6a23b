"""What a setting accepts: numbers in a range, or texts that match a pattern; `str()` describes it in an error.

The annotations of the fields in `tables.py` contain these objects, and `sources.py` checks values with them. This
module does not know the settings or their types: a value already has the type of its field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """A range of numbers, ends included; it never contains infinity or NaN."""

    smallest: float
    largest: float
    or_zero: bool = False  # 0 has a meaning of its own

    def holds(self, value: object) -> bool:
        """Whether a value is accepted."""
        assert isinstance(value, int | float), "the type is checked before"
        return self.smallest <= value <= self.largest or (self.or_zero and value == 0)

    def __str__(self) -> str:
        return f"{'0, or ' * self.or_zero}{self.smallest:,} to {self.largest:,}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """Texts that match a pattern completely, in ASCII; `words` describes them."""

    pattern: str
    words: str

    def holds(self, value: object) -> bool:
        """Whether a value is accepted."""
        assert isinstance(value, str), "the type is checked before"
        return re.fullmatch(self.pattern, value, re.ASCII) is not None

    def __str__(self) -> str:
        return self.words
