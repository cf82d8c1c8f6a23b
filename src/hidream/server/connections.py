"""Connections of clients: how many may be open, and for how long each may keep us waiting.

uvicorn answers requests; here is what it leaves to a proxy. Who connects and says nothing, or sends or reads a byte a
second, is closed. When all places are taken, who is late in reading an answer makes room, or who has been without a
request for the longest; while each place has a request in work, only health is asked for with success. Deadlines
are looked at once a second, over all connections, so that a request costs nothing for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import select
import sys
import termios
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from hidream.logs import Seldom
from hidream.server.access_log import REQUEST_ID, new_request_id
from hidream.server.answers import failure
from hidream.server.listener import HEALTH
from hidream.server.strict import HEAD_BYTES, Strict

if TYPE_CHECKING:
    from starlette.responses import Response
    from uvicorn._types import ASGI3Application

CANDIDATES = 32
"""Of the connections that may have to make room, how many are looked at."""
PIPELINE_MAX = 32
"""Requests in a row that a client may have sent without waiting for an answer."""
HEALTH_PATHS = frozenset(("/healthz", "/readyz", "/metrics"))

FULL = "all of the server's connections are in use; try again later"
TOO_SLOW = "the request came too slowly, or not at all"
BUSY_S = 2
"""When it may be worth to come back."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited for a client, in seconds, and how many bytes a second are expected of it."""

    tick_s: float = 1.0
    """How often is looked: every time-out may come so much later."""
    head_s: float = 10.0
    """From a connection's begin, or from its next request's first byte, to the end of that request's head."""
    keep_alive_s: float = 65.0
    """How long a connection may stay without a request: more than proxies keep theirs, usually a minute, lest they send
    a request into one that is just being closed."""
    body_silent_s: float = 15.0
    """The longest pause within a request's body."""
    body_grace_s: float = 15.0
    """By so many seconds a body may be behind `body_rate`, counted from its begin; 4096 are 32 kbit/s."""
    body_rate: float = 4096.0
    reading_grace_s: float = 30.0
    """By so many seconds may who takes an answer be behind `reading_rate`."""
    reading_ahead_s: float = 45.0
    """By so many seconds may he be ahead of it: a client's system makes room 128 KB at a time, which is once a minute
    at 2 KB/s, and who reads nothing looks the same for so long."""
    reading_rate: float = 1024.0
    crowded_grace_s: float = 5.0
    """As above, while all places are taken: who is further behind than this makes room first. None is further ahead."""
    crowded_rate: float = 16_384.0
    linger_s: float = 30.0
    """How long the rest of a body is thrown away that was answered before its end: else the answer may be lost.

    Of bodies above 64 KiB, `long_bodies` has thrown away a part before the answer's end, and then has us close; left to
    this are short ones, and refusals of ours."""
    linger_silent_s: float = 3.0
    reserved_s: float = 5.0
    """The whole time of a connection beyond the limit."""


class Connections:
    """All connections of a process."""

    def __init__(self, limit: int, patience: Patience = Patience()) -> None:
        self.limit = limit
        self.patience = patience
        self.open: set[Connection] = set()
        self.idle: OrderedDict[Connection, None] = OrderedDict()
        """Those without a request in work, whoever has been so for the longest first."""
        self.reserved: OrderedDict[Connection, None] = OrderedDict()
        """Those beyond the limit, oldest first."""
        self._late: list[Connection] = []
        """Those who were behind `crowded_rate` at the last look, furthest last."""
        self._full = Seldom(logger, "connections_full")
        self._malformed = Seldom(logger, "requests_refused")
        self._ticking: asyncio.TimerHandle | None = None

    def connection(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        """Make the protocol of a connection: what uvicorn is told to call."""
        return Connection(self, config, server_state, app_state)

    def add(self, connection: Connection) -> bool:
        """Take a new connection in; False if it is one beyond the limit."""
        if self._ticking is None:
            self._ticking = connection.loop.call_later(self.patience.tick_s, self._tick, connection.loop)
        within = len(self.open) - len(self.reserved) < self.limit or self._make_room()
        self.open.add(connection)
        if within:
            self.idle[connection] = None
            return True
        if len(self.reserved) >= HEALTH:
            next(iter(self.reserved)).make_room()
        self.reserved[connection] = None
        return False

    def discard(self, connection: Connection) -> None:
        """Forget a connection that is closed, or will be in this round of the loop."""
        self.open.discard(connection)
        self.idle.pop(connection, None)
        self.reserved.pop(connection, None)

    def busy(self, connection: Connection) -> None:
        """Have a connection stay that has a request in work."""
        self.idle.pop(connection, None)

    def free(self, connection: Connection) -> None:
        """Let a connection make room for others again."""
        if connection in self.open and connection not in self.reserved:
            self.idle[connection] = None
            self.idle.move_to_end(connection)

    def malformed(self, because: str) -> None:
        """Log that requests were refused before anybody has looked at them."""
        self._malformed.say(because)

    def _make_room(self) -> bool:
        """Close who is late in reading, with a request in work or not, or who has been without one for the longest.

        One that has just sent a request, which was not read yet, is passed over.
        """
        self._full.say(f"{self.limit} are open")
        while self._late:
            late = self._late.pop()
            if late in self.open and late not in self.reserved and late.owed:
                late.make_room()
                return True
        for connection in itertools.islice(self.idle, CANDIDATES):
            if connection.owed or not _has_sent(connection):
                connection.make_room()
                return True
        return False

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self.open):
            connection.look(now)
        late = (each for each in self.open if each.late_s > self.patience.crowded_grace_s)
        self._late = sorted(late, key=lambda each: each.late_s)
        self._ticking = loop.call_later(self.patience.tick_s, self._tick, loop) if self.open else None


class Connection(H11Protocol):
    """One connection; `look` closes it when its client takes too long."""

    def __init__(
        self, among: Connections, config: Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.conn: Strict = Strict(h11.SERVER, HEAD_BYTES)
        self._among, self._patience = among, among.patience
        self._received = 0  # bytes
        self._refused = False
        self._pipelined = 0  # requests in a row
        self._phase: object = None  # as it was seen at the last look; since when, from how many bytes on
        self._since = self._heard = 0.0
        self._from = self._before = 0
        self._taken = 0  # bytes of answers, at the last look, and how far their reader is behind the two rates
        self._behind_s = self.late_s = 0.0  # below 0: ahead

    @property
    def owed(self) -> int:
        """Bytes of answers that the system has not taken yet, since their reader is slow."""
        return self.transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; called by the event loop."""
        assert isinstance(transport, asyncio.Transport), "of a stream"
        super().connection_made(transport)
        self._since = self._heard = self.loop.time()
        if not self._among.add(self):
            self.app = _Reserved(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        """End; called by the event loop."""
        self._among.discard(self)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Go on with what has come; called by the event loop."""
        self._received += len(data)
        if not self._refused:
            super().data_received(data)

    def handle_events(self) -> None:
        """Start the requests that have come, and refuse what is none."""
        super().handle_events()
        if self.conn.wrong is not None and not self._refused:
            wrong = self.conn.wrong
            self._among.malformed(f"status {wrong.error_status_hint or 400}")
            self.refuse(
                wrong.error_status_hint or 400, f"the request is not HTTP as it is accepted here: {wrong!s:.200}"
            )
        elif self.cycle is not None and not self.cycle.response_complete:
            self._among.busy(self)

    def on_response_complete(self) -> None:
        """Wait for the next request, or go on with one that is already here.

        In place of uvicorn's, which sets a timer for each request.
        """
        self.server_state.total_requests += 1
        self._among.free(self)
        if self.transport.is_closing():
            return
        if self.owed:
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
        if self.transport.is_closing() or self._refused or not answered.response_complete:
            return
        self.flow.resume_reading()
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE:
            self.conn.start_next_cycle()
            self.handle_events()
        self._pipelined = self._pipelined + 1 if self.cycle is not answered else 0
        if self._pipelined >= PIPELINE_MAX:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close when the request in work is answered, at once if there is none."""
        if self._refused:
            self.transport.close()
        else:
            super().shutdown()

    def make_room(self) -> None:
        """Close at once, since others come: a client that is new is told why."""
        if self.cycle is None and not self._refused:
            self._refused = True
            self.transport.write(_NO_ROOM)
        self._among.discard(self)
        if self.owed:
            self.transport.abort()  # `close` would keep all of it until it is read
        else:
            self.transport.close()

    def refuse(self, status: int, message: str) -> None:
        """Answer a request that is not, or not wholly, here, and close. An answer that has begun is broken off."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._among.free(self)
        self._unset_keepalive_if_required()
        in_work = self.cycle is not None and not self.cycle.response_complete
        if in_work:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        headers = {"Connection": "close", REQUEST_ID: new_request_id()}
        self._write(failure(status, message, headers | ({"Retry-After": str(BUSY_S)} if status == 503 else {})))
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
        phase = (self.conn.their_state, self.cycle, complete, kept, self._refused)
        its_turn = self._refused or (not self.owed if complete else self._is_its_turn())
        if phase != self._phase or not its_turn:
            self._phase, self._since, self._heard = phase, now, now
            self._from = self._before = self._received
        elif self._received != self._before:
            self._heard, self._before = now, self._received
        self._look_at_request(now, complete, self._patience.keep_alive_s if kept else self._patience.head_s)

    def _has_begun(self) -> bool:
        """Whether the first bytes of a request's head are here."""
        return bool(self.conn.trailing_data[0])

    def _is_its_turn(self) -> bool:
        """Whether a request's body is the client's to send: there is more of it, and we read."""
        return self.cycle.more_body and not (self.flow.read_paused or self.cycle.waiting_for_100_continue)

    def _look_at_request(self, now: float, complete: bool, next_within_s: float) -> None:
        took_s, silent_s, patience = now - self._since, now - self._heard, self._patience
        if self._refused or (complete and self.conn.their_state is h11.SEND_BODY):
            if took_s > patience.linger_s or silent_s > patience.linger_silent_s:
                self.transport.abort()
        elif self in self._among.reserved and took_s > patience.reserved_s:
            self.refuse(503, FULL)
        elif complete:
            if took_s > next_within_s:
                self._give_up()
        elif silent_s > patience.body_silent_s or self._received - self._from < patience.body_rate * (
            took_s - patience.body_grace_s
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
        owed, patience = self.owed, self._patience
        before, self._taken = self._taken, self.conn.sent_bytes - owed - (self._unsent() if owed else 0)
        if not owed:
            self._behind_s = self.late_s = 0.0
            return False
        taken = max(0, self._taken - before)  # less where an earlier answer is still with the system
        behind_s = self._behind_s + patience.tick_s - taken / patience.reading_rate
        late_s = self.late_s + patience.tick_s - taken / patience.crowded_rate
        self._behind_s = max(-patience.reading_ahead_s, behind_s)
        self.late_s = max(-patience.crowded_grace_s, late_s)
        return self._behind_s > patience.reading_grace_s

    def _unsent(self) -> int:
        """Bytes that are in the system's own memory, up to megabytes, and that the client's has not acknowledged."""
        with contextlib.suppress(OSError):  # a system that does not say so
            found = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            return int.from_bytes(found, sys.byteorder)
        return 0


def _has_sent(connection: Connection) -> bool:
    """Whether something has come that was not read yet."""
    poll = select.poll()
    poll.register(connection.transport.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))


def _as_bytes(answer: Response) -> bytes:
    """Write an answer down for a connection on which no request has come."""
    lines = [b"HTTP/1.1 %d %s" % (answer.status_code, STATUS_PHRASES[answer.status_code])]
    lines += [name + b": " + value for name, value in answer.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])


_NO_ROOM = _as_bytes(failure(503, FULL, {"Connection": "close", "Retry-After": str(BUSY_S)}))
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
        headers: Mapping[str, str] = {"Retry-After": str(BUSY_S), REQUEST_ID: new_request_id()}
        await failure(503, FULL, headers)(scope, receive, send_and_close)
