"""Which server a client talks to, with which key, and how patiently: from arguments and the environment."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from hidream import __version__
from hidream.client.retries import Retry
from hidream.errors import InvalidInput, Unauthorized
from hidream.types import Variant

BASE_URL = "http://127.0.0.1:8000"
"""Where `hidream serve` listens."""
HOSTED = "api.wavespeed.ai"
"""The host whose key is WAVESPEED_API_KEY; no other host gets that key, and this host gets no other."""
VENDOR = "wavespeed-ai"


@dataclass(frozen=True, slots=True)
class Connection:
    """What all calls of a client share. `keyed` is empty until the server was asked whether it has Idempotency-Keys."""

    base_url: str
    api_key: str = field(repr=False)
    model: str
    timeout_s: float | None
    retry: Retry
    now_s: Callable[[], float] = field(default=time.time, repr=False)
    clock_s: Callable[[], float] = field(default=time.monotonic, repr=False)
    keyed: list[bool] = field(default_factory=list, repr=False)

    def headers(self, request_id: str) -> dict[str, str | bytes]:
        """The headers of each request to the API."""
        return {
            "Authorization": b"Bearer " + self.api_key.encode(),
            "User-Agent": f"hidream-python/{__version__}",
            "X-Request-ID": request_id,
        }

    def deadline(self, timeout_s: float | None) -> Deadline:
        """The end of a call that begins now; `timeout_s` of None is the client's own. Raises InvalidInput."""
        limit_s = self.timeout_s if timeout_s is None else _seconds(timeout_s)
        return Deadline(self.clock_s, math.inf if limit_s is None else self.clock_s() + limit_s)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A time of the monotonic clock."""

    clock_s: Callable[[], float]
    at_s: float

    @property
    def left_s(self) -> float:
        """The seconds that are left, 0 if it has passed."""
        return max(self.at_s - self.clock_s(), 0.0)


def connect(
    base_url: str | None,
    api_key: str | None,
    model: str,
    timeout_s: float | None,
    retry: Retry,
    environ: Mapping[str, str] = os.environ,
) -> Connection:
    """Read arguments and environment. Raises InvalidInput, or Unauthorized without a key; neither shows the key."""
    url = _base_url(base_url or environ.get("HIDREAM_BASE_URL") or BASE_URL)
    if not isinstance(retry, Retry):
        raise InvalidInput(f"retry is {retry!r:.100}; accepted: such as hidream.Retry(attempts=3)", field="retry")
    variable = "WAVESPEED_API_KEY" if urlsplit(url).hostname == HOSTED else "HIDREAM_API_KEY"
    key = api_key or environ.get(variable, "")
    if not key:
        raise Unauthorized(f"there is no API key; accepted: the argument api_key, or the variable {variable}")
    if not isinstance(key, str) or key != key.strip() or not key.isprintable():
        raise InvalidInput(
            "api_key is no text, starts or ends with a space, or has characters that are not printable; accepted: a "
            "key as `hidream keys create` prints it",
            field="api_key",
        )
    limit_s = None if timeout_s is None else _seconds(timeout_s)
    return Connection(url, key, model_name(model), limit_s, retry)


def model_name(model: str) -> str:
    """Write the API's name of a model: "dev", "hidream-i1-dev" and "wavespeed-ai/hidream-i1-dev" are the same."""
    if not isinstance(model, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", model, re.ASCII):
        raise InvalidInput(f"model is {model!r:.100}; accepted: dev, full, fast, or a model's name", field="model")
    if model in list(Variant):
        return f"{VENDOR}/hidream-i1-{model}"
    return model if "/" in model else f"{VENDOR}/{model}"


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise InvalidInput(
            f"timeout is {value!r:.100}; accepted: seconds above 0, or None for no limit", field="timeout"
        )
    return value


def _base_url(text: str) -> str:
    """Check a base URL; one that ends with the path of the API is accepted too. No error shows what may be a key."""
    accepted = "accepted: http://HOST or https://HOST, with a path or without"
    if not isinstance(text, str):
        raise InvalidInput(f"base_url is {text!r:.100}; {accepted}", field="base_url")
    if re.fullmatch(r"\w{20,}", text):
        raise InvalidInput(f"base_url looks like an API key; {accepted}, and the key as api_key=", field="base_url")
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        valid, parts = False, urlsplit("")
    if "@" in parts.netloc:
        raise InvalidInput(f"base_url contains a user name or a password; {accepted}, without these", field="base_url")
    if not valid or parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise InvalidInput(f"base_url is {text!r:.100}; {accepted}", field="base_url")
    return re.sub(r"/api(/v[23])?$", "", text.rstrip("/"))
