"""Logging of all processes: one line per event, with a name and `key=value` pairs, as text or as JSON.

The content of a value never adds a line or a pair: a JSON line takes its pairs from the template of the call, not from
the formatted text. Only `configure` sets up logging, and importing this module does not.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from datetime import UTC, datetime
from typing import TextIO

_PAIR = re.compile(r"(\w+)=%[-.\d]*[a-z]")
_FIELD = re.compile(r"%[-.\d]*[a-z]")
_HEAD = ("time", "level", "logger", "event", "exception")
_BREAKS = str.maketrans({"\n": "\\n", "\r": "\\r", "\0": "\\0"})


def configure(log_format: str, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Write the log of this process, from a level on, to a stream, by default standard error, as `text` or `json`.

    If the program that imports hidream has set up logging already, that stays, unless `stream` is given.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    logging.basicConfig(level=level, handlers=[handler], force=stream is not None)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it logs every start like a migration
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns about what clients send
    for client in ("httpx", "httpx2", "mcp"):  # they log every request with its URL
        logging.getLogger(client).setLevel(logging.WARNING)


class TextLines(logging.Formatter):
    """For people: time, level, logger and message in one line, followed by the traceback, if any."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Format the line of a record."""
        return super().formatMessage(record).translate(_BREAKS)


class JsonLines(logging.Formatter):
    """For programs: a JSON object with `time`, `level`, `logger`, `event`, and a field for each pair."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        head: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
        }
        line = head | _event(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _event(record: logging.LogRecord) -> dict[str, object]:
    """Return the event name, which is the first word of the template, and each pair with its value."""
    template, values = record.msg, record.args
    names = _PAIR.findall(template) if isinstance(template, str) else []
    if not isinstance(values, tuple) or not 0 < len(names) == len(values) == len(_FIELD.findall(str(template))):
        return {"event": record.getMessage()}
    pairs = {name if name not in _HEAD else f"{name}_": _plain(v) for name, v in zip(names, values, strict=True)}
    return {"event": str(template).split(" ", 1)[0], **pairs}


def _plain(value: object) -> object:
    """Return a value that JSON has: floats rounded to a thousandth, and everything else, StrEnums too, as text."""
    if isinstance(value, float):
        return round(value, 3)
    return value if value is None or isinstance(value, bool | int) else str(value)


class RateLimitedLog:
    """Logs an event that clients can cause at will: at most one line per second, with the number of events."""

    EVERY_S = 1.0

    def __init__(self, logger: logging.Logger, event: str) -> None:
        self._logger = logger
        self._event = event
        self._count = 0
        self._next = -math.inf

    def warn(self, reason: object) -> None:
        """Log a warning, or only count the event."""
        self._count += 1
        now = time.monotonic()
        if now >= self._next:
            self._logger.warning(f"{self._event} count=%d reason=%s", self._count, reason)
            self._count, self._next = 0, now + self.EVERY_S
