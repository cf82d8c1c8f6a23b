"""HTTP/1.1 as h11 reads it, less what two readers of one request could read differently.

A proxy and a server that disagree on where a request ends let a client smuggle a second one past the proxy. h11 takes
lines that end in a bare LF, folded headers, and a Content-Length beside Transfer-Encoding; RFC 9112 lets a server
refuse all of them.
"""

from __future__ import annotations

import re

import h11

HEAD_MAX_BYTES = 32_768
"""The most that the lines before a body may have, one long URL or many headers; proxies take 8 to 64 KB."""

_HOST = re.compile(rb"\nhost:[ \t]*(?:\[[0-9a-f:.]{2,60}\]|[\w.~%!$&'()*+,;=-]{0,255})(?::[0-9]{0,5})?[ \t]*\r\n")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*[0-9]{1,19}[ \t]*\r\n")


class StrictConnection(h11.Connection):
    """A server's side of a connection.

    `wrong` is what was wrong with a request, after which nothing more is read; `sent_bytes` were given to be sent.
    """

    wrong: h11.RemoteProtocolError | None = None
    sent_bytes: int = 0

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]
        """Give the bytes of an event, and count them."""
        data = super().send(event)
        if data:
            self.sent_bytes += len(data)
        return data

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Give the next event; NEED_DATA from the first thing on that is wrong."""
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
    """See that a request's lines, as far as they have come, end in CR LF, and that none goes on in the next."""
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
    """See that a request, in small letters, says only once where it ends, and whom it is for."""
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
