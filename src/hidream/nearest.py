"""The name that was probably meant, for errors about an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

CUTOFF = 0.6
"""The least similarity, 0 to 1, of a name that is suggested: difflib's default."""


def nearest(name: str, known: Mapping[str, str]) -> str:
    """Return the end of an error text with the known name most similar to `name`; empty if none is similar.

    The keys of `known`, all in lower case, are compared; its values are shown.
    """
    found = difflib.get_close_matches(name.lower(), known, n=1, cutoff=CUTOFF)
    return f"; the nearest is {known[found[0]]}" if found else ""
