"""Every setting by name, with its type and what it accepts, for tests of all settings."""

from __future__ import annotations

from typing import get_args, get_type_hints

from hidream.settings.accepted import Range
from hidream.settings.tables import TABLES

HINTS = {
    (table, key): get_args(hint)
    for table, kind in TABLES.items()
    for key, hint in get_type_hints(kind, include_extras=True).items()
}
"""Each setting's type, and what it accepts."""

NUMBERS = [(*name, hint[0], hint[1]) for name, hint in HINTS.items() if isinstance(hint[1], Range)]
"""Table, key, type and range of each setting that is a number."""
