"""A stricter h11, which refuses requests that two parsers could understand differently.

If a proxy and a server disagree on where a request ends, a client can smuggle a second request past the proxy. h11
accepts lines that end in a bare LF, folded headers, and Content-Length together with Transfer-Encoding. RFC 9112 allows
a server to refuse all of them.
"""

from __future__ import annotations

import re

import h11

HEAD_MAX_BYTES = 32_768
"""The largest head of a request (request line and headers); proxies accept 8 to 64 KB."""

_HOST = re.compile(rb"\nhost:[ \t]*(?:\[[0-9a-f:.]{2,60}\]|[\w.~%!$&'()*+,;=-]{0,255})(?::[0-9]{0,5})?[ \t]*\r\n")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*[0-9]{1,19}[ \t]*\r\n")


class StrictConnection(h11.Connection):
    """The server's side of a connection.

    `wrong` is the error of a malformed request; after it, nothing is parsed. `sent_bytes` counts the bytes to send.
    """

    wrong: h11.RemoteProtocolError | None = None
    sent_bytes: int = 0

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]
        """Return the bytes of an event, and count them."""
        data = super().send(event)
        if data:
            self.sent_bytes += len(data)
        return data

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event; after the first error, always NEED_DATA."""
        if self.wrong is not None:
            return h11.NEED_DATA
        try:
            if self.their_state is h11.IDLE and (received := self.trailing_data[0]):
                _check_head(received)
            return super().next_event()
        except h11.RemoteProtocolError as error:
            self.wrong = error
            return h11.NEED_DATA


def _check_head(received: bytes) -> None:
    """Check that the received lines of a head end in CR LF, and that no header is folded."""
    end = received.find(b"\r\n\r\n")
    head = received if end < 0 else received[: end + 2]
    if len(head) > HEAD_MAX_BYTES:
        raise h11.RemoteProtocolError(f"its head has more than {HEAD_MAX_BYTES} bytes", error_status_hint=431)
    if head.count(b"\n") != head.count(b"\r\n"):
        raise _wrong("a line of the head ends without CR")
    if b"\n " in head or b"\n\t" in head:
        raise _wrong("a header continues on the next line")
    if end >= 0:
        _check_headers(head.lower())


def _check_headers(head: bytes) -> None:
    """Check that a head, in lower case, gives the body's length only once, and a valid Host."""
    lengths, encoded = head.count(b"\ncontent-length:"), b"\ntransfer-encoding:" in head
    if lengths and (lengths > 1 or not _LENGTH.search(head)):
        raise _wrong("Content-Length is repeated or is not a number")
    if lengths and encoded:
        raise _wrong("Content-Length and Transfer-Encoding are both present")
    if encoded and b" http/1.0\r\n" in head:
        raise _wrong("HTTP/1.0 has no Transfer-Encoding")
    if b"\nhost:" in head and not _HOST.search(head):
        raise _wrong("Host is not a host name")


def _wrong(what: str) -> h11.RemoteProtocolError:
    return h11.RemoteProtocolError(what, error_status_hint=400)
