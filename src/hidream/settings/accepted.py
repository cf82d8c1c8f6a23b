"""What a setting accepts: numbers between two ends, or texts like a pattern; each says it in words for an error.

Such a value stands in the annotation of a field of `tables.py`, and `sources.py` asks it. Does not know which
settings there are, nor their types: a value that comes here has its field's type already.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Between:
    """The numbers that a setting accepts; infinity and what is no number never are."""

    smallest: float
    largest: float
    or_zero: bool = False  # where 0 has a meaning of its own

    def holds(self, value: object) -> bool:
        """Whether a value is one of them."""
        assert isinstance(value, int | float), "the type is settled before"
        return self.smallest <= value <= self.largest or (self.or_zero and value == 0)

    def __str__(self) -> str:
        return f"{'0, or ' * self.or_zero}{self.smallest:,} to {self.largest:,}"


@dataclass(frozen=True, slots=True)
class Like:
    """The texts that a setting accepts: a pattern for all of one, in ASCII, and the same in words."""

    pattern: str
    words: str

    def holds(self, value: object) -> bool:
        """Whether a value is one of them."""
        assert isinstance(value, str), "the type is settled before"
        return re.fullmatch(self.pattern, value, re.ASCII) is not None

    def __str__(self) -> str:
        return self.words
