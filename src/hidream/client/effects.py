"""What the generators of `calls` and `events` want done: `runners` does it, and sends the result back.

A generator of type `Steps[T]` yields effects and returns a T. The reply to a `Send` is a `Response`, to an `Open` a
stream, to a `Read` bytes, to the others None. Errors of httpx are raised where the effect was yielded.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, TypeAlias, TypeVar

import httpx

CONNECT_S = 10.0
"""How long a connection may take to be made."""
READ_S = 60.0
"""The longest silence in a response; a server sends long ones in pieces, and a comment in a quiet stream."""


class Repeat(Enum):
    """When a request may be sent again after a failure.

    ALWAYS: it changes nothing, or the same again. KEYED: it has an Idempotency-Key, which not every server knows.
    UNRECEIVED: only if the server surely did nothing: no connection was made, or the response is a 429.
    """

    ALWAYS = auto()
    KEYED = auto()
    UNRECEIVED = auto()


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request; `file` is the file of a form, as name and bytes. `read_s` limits silence in the response."""

    method: str
    url: str
    headers: Mapping[str, str | bytes] = field(repr=False)
    params: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    file: tuple[str, bytes] | None = field(default=None, repr=False)
    repeat: Repeat = Repeat.ALWAYS
    redirects: bool = False
    read_s: float = READ_S

    def arguments(self, left_s: float) -> dict[str, Any]:
        """The arguments of httpx, with timeouts of at most `left_s` seconds each."""
        connect_s, read_s = min(CONNECT_S, left_s), min(self.read_s, left_s)
        timeout = httpx.Timeout(read_s, connect=connect_s, pool=None if left_s == float("inf") else left_s)
        content = {"json": self.json, "files": None if self.file is None else {"file": self.file}}
        given = {name: value for name, value in content.items() if value is not None}
        common = {"params": dict(self.params) or None, "headers": dict(self.headers), "timeout": timeout}
        return {"method": self.method, "url": self.url, **common, **given}


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request and read the whole response, before the monotonic clock says `until_s`."""

    request: Request
    until_s: float


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request and read only the head of the response; one stream at a time is open."""

    request: Request
    until_s: float


@dataclass(frozen=True, slots=True)
class Read:
    """Read the next bytes of the open stream; b"" at its end."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the stream that is open, if any."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Emit:
    """Give a value to the user, who iterates."""

    value: Any


Effect: TypeAlias = Send | Open | Read | Close | Sleep | Emit
T = TypeVar("T")
Steps: TypeAlias = Generator[Effect, Any, T]
