"""The header `Retry-After` (RFC 9110, section 10.2.3), which webhooks and the client obey. Standard library only."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime


def retry_after_s(text: str, now_s: float) -> float:
    """Read the seconds or the date of a Retry-After; 0 without one, and for anything else. `now_s` is Unix time."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - now_s, 0.0)
    except (ValueError, OverflowError):
        return 0.0
