"""The name that was probably meant, for errors about one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

CUTOFF = 0.6
"""From which likeness on, 0 to 1, a name is worth naming: difflib's own."""


def nearest(name: str, known: Mapping[str, str]) -> str:
    """Say which of the known names is most like one; empty if none is. Compared are the keys, all in small letters."""
    found = difflib.get_close_matches(name.lower(), known, n=1, cutoff=CUTOFF)
    return f"; the nearest is {known[found[0]]}" if found else ""
