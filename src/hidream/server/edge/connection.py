"""One connection of a client: when its requests start, its deadlines, and how it is closed.

uvicorn reads requests and writes responses. This file decides when a request may start (`fair_queue`), and closes the
connection if the client takes too long (`connections`). If a client goes on sending a body after the response, only a
limited part of it is read and discarded; uvicorn would read all of it to find the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from hidream.server.access_log import REQUEST_ID, new_request_id
from hidream.server.bodies.long_bodies import KEY_ID, SHORT_BYTES
from hidream.server.edge.fair_queue import DISCARDING, authorization_of
from hidream.server.edge.reading_pace import ReadingPace
from hidream.server.edge.strict_http import HEAD_MAX_BYTES, StrictConnection
from hidream.server.responses import failure

if TYPE_CHECKING:
    import socket

    from starlette.responses import Response
    from uvicorn._types import ASGI3Application

    from hidream.server.edge.connections import Connections

PIPELINE_MAX = 32
"""The number of successive requests that a client may send without waiting for a response."""
HEALTH_PATHS = frozenset(("/healthz", "/readyz", "/metrics"))

NO_CONNECTIONS = "all of the server's connections are in use; try again later"
TOO_SLOW = "the request came too slowly, or not at all"
RETRY_AFTER_S = 2
"""The value of Retry-After in a 503."""


class Connection(H11Protocol):
    """One connection; `check` closes it if its client takes too long."""

    def __init__(
        self, connections: Connections, config: Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.conn: StrictConnection = StrictConnection(h11.SERVER, HEAD_MAX_BYTES)
        self._connections, self._timeouts = connections, connections.timeouts
        self._received = 0  # bytes
        self._held: bytes | None = None  # received bytes of a request that waits in the fair queue
        self._authorization: int | None = None  # hash of the request's Authorization header
        self._ended = False  # received bytes are discarded from now on
        self._dropped = 0  # discarded bytes
        self._drop_max = self._timeouts.linger_bytes
        self._pipelined = 0  # successive pipelined requests
        self._phase: object = None  # at the last look
        self._since = self._heard = 0.0  # when the phase began, and when bytes were last received
        self._from = self._before = 0  # `_received` when the phase began, and at the last look
        self._pace = ReadingPace(self._timeouts)

    @property
    def unsent_bytes(self) -> int:
        """Bytes of responses that the kernel has not accepted yet, because the client reads slowly."""
        return self.transport.get_write_buffer_size()

    @property
    def late_s(self) -> float:
        """How many seconds the client is behind `crowded_rate` in reading responses; negative if it is ahead."""
        return self._pace.late_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start; called by the event loop."""
        assert isinstance(transport, asyncio.Transport), "a stream has such a transport"
        super().connection_made(transport)
        self._since = self._heard = self.loop.time()
        if not self._connections.add(self):
            self.app = _Reserved(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        """End; called by the event loop."""
        self._connections.discard(self)
        if self.cycle is not None:
            self.cycle.transport = self.transport  # breaks a reference cycle
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process received bytes; called by the event loop."""
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
        """Whether the next bytes belong to a request's head."""
        return self.cycle is None or (self.cycle.response_complete and self.conn.their_state is not h11.SEND_BODY)

    def _enqueue(self, data: bytes, begin: Callable[[], bool]) -> None:
        """Hold received bytes until a request of this client may start."""
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
        """Process the held bytes. Return False if the client no longer waits for a response."""
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
        """Start a request that was sent before the previous one was answered."""
        answered = self.cycle
        if not self._begin():
            return False
        self._pipelined = self._pipelined + 1 if self.cycle is not answered else 0
        if self._pipelined >= PIPELINE_MAX:
            self.cycle.keep_alive = False
        return True

    def handle_events(self) -> None:
        """Start received requests, and refuse malformed ones."""
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
        """Wait for the next request, or start one that was received already.

        Replaces uvicorn's method, which sets a timer for each request.
        """
        self.server_state.total_requests += 1
        if self._authorization is not None and (key_id := self._key_id()):
            self._connections.fair_queue.add_valid_key(self._authorization, key_id)
        self._connections.free(self)
        if self.transport.is_closing():
            return
        if self.unsent_bytes:
            self.flow.resume_reading()  # the rest of a body may precede the next request
            self.transport.set_write_buffer_limits(0)  # so that `resume_writing` is called when the buffer is empty
        else:
            self._go_on()

    def resume_writing(self) -> None:
        """Continue a response, or go on after it; called by the event loop."""
        super().resume_writing()
        self.transport.set_write_buffer_limits()
        if self.cycle is not None and self.cycle.response_complete:
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Start the next request if it was received.

        The previous response must be sent completely before, so that responses do not accumulate in memory.
        """
        answered = self.cycle
        if self.transport.is_closing() or self._ended or not answered.response_complete:
            return
        self.flow.resume_reading()
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE:
            self.conn.start_next_cycle()
            if self._held is not None:  # it is in the fair queue already, with the bytes that were received before it
                return
            if self._has_begun():
                self._enqueue(b"", self._begin_next)
                return
        self._pipelined = 0

    def _key_id(self) -> str:
        """Return the id of the valid key of the current or last request, empty without one."""
        return str(self.cycle.scope.get("state", {}).get(KEY_ID) or "")

    def finish(self) -> None:
        """Close after a response, once the rest of its request's body was received, or the limit was reached."""
        if self.conn.their_state is not h11.SEND_BODY or self.transport.is_closing():
            self.transport.close()
            return
        if self._key_id():
            self._drop_max = self._timeouts.linger_known_bytes
        self._linger()

    def _linger(self) -> None:
        """End our side, and discard what is still received: if closed at once, the response might be lost."""
        self._ended = True
        self.flow.resume_reading()
        with contextlib.suppress(OSError):
            self.transport.write_eof()

    def _drop(self, count: int) -> None:
        """Discard a piece, and read the next one in turn: the pieces of a hundred bodies would block the event loop."""
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
        """Close once the current request is answered, or at once if there is none."""
        self._begin()
        if self._ended:
            self.transport.close()
        else:
            super().shutdown()

    def evict(self) -> None:
        """Close at once to make room for another connection. A client that has sent no request yet gets a 503."""
        if self.cycle is None and not self._ended:
            self._ended = True
            self.transport.write(_NO_ROOM)
        self._connections.discard(self)
        if self.unsent_bytes:
            self.transport.abort()  # `close` would keep the bytes in memory until they are read
        else:
            self.transport.close()

    def refuse(self, status: int, message: str) -> None:
        """Answer a malformed or incomplete request, and close. A response that has started is aborted."""
        if self._ended or self.transport.is_closing():
            return
        self._ended = True
        self._connections.free(self)
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        headers = {"Connection": "close", REQUEST_ID: new_request_id()}
        self._write(failure(status, message, headers | ({"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {})))
        self.flow.resume_reading()
        with contextlib.suppress(OSError):
            self.transport.write_eof()  # received bytes are discarded: if closed at once, the response might be lost

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
        return False  # uvicorn would log a line for each client that requests an upgrade

    def check(self, now: float) -> None:
        """Close if the client takes too long; called once a second."""
        client = self.transport.get_extra_info("socket")
        if self._pace.is_too_slow(self.conn.sent_bytes, self.unsent_bytes, client):
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
        self._check_request(now, complete, self._timeouts.keep_alive_s if kept else self._timeouts.head_s)

    def _has_begun(self) -> bool:
        """Whether the first bytes of a request's head were received."""
        return bool(self.conn.trailing_data[0])

    def _is_its_turn(self) -> bool:
        """Whether we wait for the client to send more of a body: it is incomplete, and reading is not paused."""
        return self.cycle.more_body and not (self.flow.read_paused or self.cycle.waiting_for_100_continue)

    def _check_request(self, now: float, complete: bool, next_within_s: float) -> None:
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
        """Close a connection whose request is late; without a response if no byte of the request was received."""
        if self._has_begun():
            self.refuse(408, TOO_SLOW)
        else:
            self.transport.close()


def _has_disconnected(client: socket.socket) -> bool:
    """Whether a client has closed its side, even if unread bytes precede the end."""
    poll = select.poll()
    poll.register(client, getattr(select, "POLLRDHUP", 0))  # only on Linux; elsewhere the event loop notices it later
    return bool(poll.poll(0))


class _Outlet:
    """The transport as uvicorn's response sees it; `close` goes to the connection instead."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.finish


def _as_bytes(answer: Response) -> bytes:
    """Serialise a response for a connection on which no request was received."""
    lines = [b"HTTP/1.1 %d %s" % (answer.status_code, STATUS_PHRASES[answer.status_code])]
    lines += [name + b": " + value for name, value in answer.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])


_NO_ROOM = _as_bytes(failure(503, NO_CONNECTIONS, {"Connection": "close", "Retry-After": str(RETRY_AFTER_S)}))
"""Serialised once, because a thousand connections may be evicted at the same moment."""


class _Reserved:
    """The application for a reserved connection, one beyond the limit: it serves only the health paths."""

    def __init__(self, app: ASGI3Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and close the connection."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        if scope["method"] in ("GET", "HEAD") and scope["path"] in HEALTH_PATHS:
            await self._app(scope, receive, send_and_close)  # type: ignore[arg-type]
            return
        headers: Mapping[str, str] = {"Retry-After": str(RETRY_AFTER_S), REQUEST_ID: new_request_id()}
        await failure(503, NO_CONNECTIONS, headers)(scope, receive, send_and_close)
