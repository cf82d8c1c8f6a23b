"""One connection of a client: its requests in their turn, its deadlines, and its end.

uvicorn reads requests and writes responses. This file says when it may (`fair_queue`), and closes the connection when a
client takes too long (`connections`). Of what a client still sends after a response, a little is discarded; otherwise
the server would read all of it, however long, to find the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import select
import sys
import termios
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from hidream.server.access_log import REQUEST_ID, new_request_id
from hidream.server.answers import failure
from hidream.server.bodies.long_bodies import KEY_ID, SHORT_BYTES
from hidream.server.edge.fair_queue import DISCARDING, authorization_of
from hidream.server.edge.strict_http import HEAD_MAX_BYTES, StrictConnection

if TYPE_CHECKING:
    import socket

    from starlette.responses import Response
    from uvicorn._types import ASGI3Application

    from hidream.server.edge.connections import Connections

PIPELINE_MAX = 32
"""Requests in a row that a client may have sent without waiting for an answer."""
HEALTH_PATHS = frozenset(("/healthz", "/readyz", "/metrics"))

NO_CONNECTIONS = "all of the server's connections are in use; try again later"
TOO_SLOW = "the request came too slowly, or not at all"
RETRY_AFTER_S = 2
"""When it may be worth to come back."""


class Connection(H11Protocol):
    """One connection; `look` closes it when its client takes too long."""

    def __init__(
        self, connections: Connections, config: Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.conn: StrictConnection = StrictConnection(h11.SERVER, HEAD_MAX_BYTES)
        self._connections, self._timeouts = connections, connections.timeouts
        self._received = 0  # bytes
        self._held: bytes | None = None  # what has come of a request that waits for its turn
        self._authorization: int | None = None  # the hash of its key
        self._ended = False  # what comes from now on is thrown away
        self._dropped = 0  # bytes of that
        self._drop_max = self._timeouts.linger_bytes
        self._pipelined = 0  # requests in a row
        self._phase: object = None  # as it was seen at the last look; since when, from how many bytes on
        self._since = self._heard = 0.0
        self._from = self._before = 0
        self._taken = 0  # bytes of answers, at the last look, and how far their reader is behind the two rates
        self._behind_s = self.late_s = 0.0  # below 0: ahead

    @property
    def unsent_bytes(self) -> int:
        """Bytes of answers that the system has not taken yet, since their reader is slow."""
        return self.transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; called by the event loop."""
        assert isinstance(transport, asyncio.Transport), "of a stream"
        super().connection_made(transport)
        self._since = self._heard = self.loop.time()
        if not self._connections.add(self):
            self.app = _Reserved(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        """End; called by the event loop."""
        self._connections.discard(self)
        if self.cycle is not None:
            self.cycle.transport = self.transport  # else each would keep the other in memory
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Go on with what has come; called by the event loop."""
        self._received += len(data)
        if self._ended:
            self._drop(len(data))
        elif self._held is not None:
            self._hold(self._held + data)
        elif self._is_at_head():
            self._enqueue(data, self._begin)
        else:
            super().data_received(data)

    def _is_at_head(self) -> bool:
        """Whether what comes now is a request's head, or a part of one."""
        return self.cycle is None or (self.cycle.response_complete and self.conn.their_state is not h11.SEND_BODY)

    def _enqueue(self, data: bytes, begin: Callable[[], bool]) -> None:
        """Hold what has come back until a request of its client may begin."""
        fair_queue, before = self._connections.fair_queue, self.conn.trailing_data[0]
        self._authorization = authorization_of(before + data)
        self._held = data
        if not fair_queue.start_or_enqueue(
            fair_queue.client(self.client[0] if self.client else "", self._authorization), begin
        ):
            self._connections.busy(self)
            self._hold(data)

    def _hold(self, data: bytes) -> None:
        self._held = data
        if len(data) > SHORT_BYTES:
            self.flow.pause_reading()

    def _begin(self) -> bool:
        """Read what was held back; False if nobody waits for an answer any more."""
        data, self._held = self._held, None
        if data is None or self._ended:
            return False
        if self.transport.is_closing() or _has_disconnected(self.transport.get_extra_info("socket")):
            self._connections.abandoned()
            self.transport.close()
            return False
        self.flow.resume_reading()
        if self not in self._connections.idle:
            self._connections.free(self)
        if data:
            self.conn.receive_data(data)
        self.handle_events()
        return True

    def _begin_next(self) -> bool:
        """Begin a request that was sent before the last one was answered."""
        answered = self.cycle
        if not self._begin():
            return False
        self._pipelined = self._pipelined + 1 if self.cycle is not answered else 0
        if self._pipelined >= PIPELINE_MAX:
            self.cycle.keep_alive = False
        return True

    def handle_events(self) -> None:
        """Start the requests that have come, and refuse what is none."""
        super().handle_events()
        if self.cycle is not None and self.cycle.transport is self.transport:
            self.cycle.transport = cast(asyncio.Transport, _Outlet(self))
        if self.conn.wrong is not None and not self._ended:
            wrong = self.conn.wrong
            self._connections.malformed(f"status {wrong.error_status_hint or 400}")
            self.refuse(
                wrong.error_status_hint or 400, f"the request is not HTTP as it is accepted here: {wrong!s:.200}"
            )
        elif self.cycle is not None and not self.cycle.response_complete:
            self._connections.busy(self)

    def on_response_complete(self) -> None:
        """Wait for the next request, or go on with one that is already here.

        In place of uvicorn's, which sets a timer for each request.
        """
        self.server_state.total_requests += 1
        if self._authorization is not None and (key_id := self._key_id()):
            self._connections.fair_queue.add_valid_key(self._authorization, key_id)
        self._connections.free(self)
        if self.transport.is_closing():
            return
        if self.unsent_bytes:
            self.flow.resume_reading()  # the rest of a body may come first
            self.transport.set_write_buffer_limits(0)  # `resume_writing` is called when nothing is left
        else:
            self._go_on()

    def resume_writing(self) -> None:
        """Go on with an answer, or behind it; called by the event loop."""
        super().resume_writing()
        self.transport.set_write_buffer_limits()
        if self.cycle is not None and self.cycle.response_complete:
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Start the next request, if it is here: not before the last answer is taken, lest answers pile up."""
        answered = self.cycle
        if self.transport.is_closing() or self._ended or not answered.response_complete:
            return
        self.flow.resume_reading()
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE:
            self.conn.start_next_cycle()
            if self._held is not None:  # its turn will come, and of what was here before with it
                return
            if self._has_begun():
                self._enqueue(b"", self._begin_next)
                return
        self._pipelined = 0

    def _key_id(self) -> str:
        """Return the id of the valid key of the current or last request, empty without one."""
        return str(self.cycle.scope.get("state", {}).get(KEY_ID) or "")

    def finish(self) -> None:
        """Close behind an answer, once the rest of its request's body has come, or enough of it."""
        if self.conn.their_state is not h11.SEND_BODY or self.transport.is_closing():
            self.transport.close()
            return
        if self._key_id():
            self._drop_max = self._timeouts.linger_known_bytes
        self._linger()

    def _linger(self) -> None:
        """End our side, and throw away what still comes: closed at once, the answer might be lost."""
        self._ended = True
        self.flow.resume_reading()
        with contextlib.suppress(OSError):
            self.transport.write_eof()

    def _drop(self, count: int) -> None:
        """Throw a piece away, and wait for the turn of the next: pieces of a hundred bodies are a round's time each."""
        self._dropped += count
        if self._dropped > self._drop_max:
            self.transport.close()
        elif count > SHORT_BYTES:
            self.flow.pause_reading()
            self._connections.fair_queue.start_or_enqueue(DISCARDING, self._drop_on)

    def _drop_on(self) -> bool:
        self.flow.resume_reading()
        return not self.transport.is_closing()

    def shutdown(self) -> None:
        """Close when the request in work is answered, at once if there is none."""
        self._begin()
        if self._ended:
            self.transport.close()
        else:
            super().shutdown()

    def evict(self) -> None:
        """Close at once, since others come: a client that is new is told why."""
        if self.cycle is None and not self._ended:
            self._ended = True
            self.transport.write(_NO_ROOM)
        self._connections.discard(self)
        if self.unsent_bytes:
            self.transport.abort()  # `close` would keep all of it until it is read
        else:
            self.transport.close()

    def refuse(self, status: int, message: str) -> None:
        """Answer a request that is not, or not wholly, here, and close. An answer that has begun is broken off."""
        if self._ended or self.transport.is_closing():
            return
        self._ended = True
        self._connections.free(self)
        self._unset_keepalive_if_required()
        in_work = self.cycle is not None and not self.cycle.response_complete
        if in_work:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        headers = {"Connection": "close", REQUEST_ID: new_request_id()}
        self._write(failure(status, message, headers | ({"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {})))
        self.flow.resume_reading()
        with contextlib.suppress(OSError):
            self.transport.write_eof()  # and throw away what still comes: closed at once, the answer might be lost

    def _write(self, answer: Response) -> None:
        head = [*self.server_state.default_headers, *answer.raw_headers]
        reason = STATUS_PHRASES[answer.status_code]
        events = (
            h11.Response(status_code=answer.status_code, headers=head, reason=reason),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        )
        with contextlib.suppress(h11.LocalProtocolError):
            self.transport.write(b"".join(filter(None, map(self.conn.send, events))))

    def _should_upgrade(self) -> bool:
        return False  # and not a line in the log for each client that asks

    def look(self, now: float) -> None:
        """Close when the client takes too long; once a second."""
        if self._reads_too_slowly():
            self.transport.abort()
            return
        if self.transport.is_closing():
            return
        complete = self.cycle is None or self.cycle.response_complete
        kept = complete and self.cycle is not None and self.conn.their_state is h11.IDLE and not self._has_begun()
        phase = (self.conn.their_state, self.cycle, complete, kept, self._ended)
        its_turn = self._held is None and (not self.unsent_bytes if complete or self._ended else self._is_its_turn())
        if phase != self._phase or not its_turn:
            self._phase, self._since, self._heard = phase, now, now
            self._from = self._before = self._received
        elif self._received != self._before:
            self._heard, self._before = now, self._received
        self._look_at_request(now, complete, self._timeouts.keep_alive_s if kept else self._timeouts.head_s)

    def _has_begun(self) -> bool:
        """Whether the first bytes of a request's head are here."""
        return bool(self.conn.trailing_data[0])

    def _is_its_turn(self) -> bool:
        """Whether a request's body is the client's to send: there is more of it, and we read."""
        return self.cycle.more_body and not (self.flow.read_paused or self.cycle.waiting_for_100_continue)

    def _look_at_request(self, now: float, complete: bool, next_within_s: float) -> None:
        took_s, silent_s, timeouts = now - self._since, now - self._heard, self._timeouts
        if self._ended or (complete and self.conn.their_state is h11.SEND_BODY):
            if took_s > timeouts.linger_s or silent_s > timeouts.linger_silent_s:
                self.transport.abort()
        elif self in self._connections.reserved and took_s > timeouts.reserved_s:
            self.refuse(503, NO_CONNECTIONS)
        elif complete:
            if took_s > next_within_s:
                self._give_up()
        elif silent_s > timeouts.body_silent_s or self._received - self._from < timeouts.body_rate * (
            took_s - timeouts.body_grace_s
        ):
            self.refuse(408, TOO_SLOW)

    def _give_up(self) -> None:
        """Close a connection whose request has not come: without a word, where not a byte of one has come."""
        if self._has_begun():
            self.refuse(408, TOO_SLOW)
        else:
            self.transport.close()

    def _reads_too_slowly(self) -> bool:
        """Whether an answer waits for its reader; what the system keeps for him is not counted as taken."""
        unsent_bytes, timeouts = self.unsent_bytes, self._timeouts
        before, self._taken = self._taken, self.conn.sent_bytes - unsent_bytes - (self._unsent() if unsent_bytes else 0)
        if not unsent_bytes:
            self._behind_s = self.late_s = 0.0
            return False
        taken = max(0, self._taken - before)  # less where an earlier answer is still with the system
        behind_s = self._behind_s + timeouts.tick_s - taken / timeouts.reading_rate
        late_s = self.late_s + timeouts.tick_s - taken / timeouts.crowded_rate
        self._behind_s = max(-timeouts.reading_ahead_s, behind_s)
        self.late_s = max(-timeouts.crowded_grace_s, late_s)
        return self._behind_s > timeouts.reading_grace_s

    def _unsent(self) -> int:
        """Bytes that are in the system's own memory, up to megabytes, and that the client's has not acknowledged."""
        with contextlib.suppress(OSError):  # a system that does not say so
            found = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            return int.from_bytes(found, sys.byteorder)
        return 0


def _has_disconnected(client: socket.socket) -> bool:
    """Whether a client has closed its side, even behind bytes that were not read yet."""
    poll = select.poll()
    poll.register(client, getattr(select, "POLLRDHUP", 0))  # Linux has it; elsewhere the loop will see it
    return bool(poll.poll(0))


class _Outlet:
    """The transport as the answer to one request sees it: to close it is the connection's."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.finish


def _as_bytes(answer: Response) -> bytes:
    """Write an answer down for a connection on which no request has come."""
    lines = [b"HTTP/1.1 %d %s" % (answer.status_code, STATUS_PHRASES[answer.status_code])]
    lines += [name + b": " + value for name, value in answer.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])


_NO_ROOM = _as_bytes(failure(503, NO_CONNECTIONS, {"Connection": "close", "Retry-After": str(RETRY_AFTER_S)}))
"""Made once: a thousand connections may have to make room at the same moment."""


class _Reserved:
    """The application as a connection beyond the limit sees it: health, and a refusal of everything else."""

    def __init__(self, app: ASGI3Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and close."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        if scope["method"] in ("GET", "HEAD") and scope["path"] in HEALTH_PATHS:
            await self._app(scope, receive, send_and_close)  # type: ignore[arg-type]
            return
        headers: Mapping[str, str] = {"Retry-After": str(RETRY_AFTER_S), REQUEST_ID: new_request_id()}
        await failure(503, NO_CONNECTIONS, headers)(scope, receive, send_and_close)
