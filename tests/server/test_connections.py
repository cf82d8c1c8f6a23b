"""Connections of clients that are slow, silent, too many, or send ambiguous HTTP.

The server is in the test's own process, with patience for tenths of a second; what is real is the socket.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import resource
import socket
import time
from pathlib import Path

import httpx
import pytest
import uvicorn
from test_serve import KEY, api

from hidream.server.edge.connection import PIPELINE_MAX
from hidream.server.edge.connections import Connections, Timeouts
from hidream.server.edge.listener import RESERVED_CONNECTIONS, connection_limit, listen
from hidream.server.edge.strict_http import HEAD_MAX_BYTES
from hidream.settings.tables import Server

pytestmark = pytest.mark.integration

QUICK = Timeouts(
    tick_s=0.05,
    head_s=0.5,
    keep_alive_s=1.5,
    body_silent_s=0.5,
    body_grace_s=1.0,
    body_rate=10_000,
    reading_grace_s=0.5,
    reading_ahead_s=0.5,
    reading_rate=10_000,
    linger_s=1.0,
    linger_silent_s=0.3,
    reserved_s=0.5,
)
SLOW = Timeouts()
HELLO = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE_BYTES = 64 * 2**20
"""More than the system keeps for a reader that does not read."""
WHOLE_BYTES = 16 * 2**20
"""The same, for an answer that is sent in one piece."""


class Application:
    """Answers each path in its way; `held` are requests in work until `release` is set."""

    def __init__(self):
        self.release, self.held, self.left, self.paths = asyncio.Event(), 0, 0, []

    async def __call__(self, scope, receive, send):
        self.paths.append(scope["path"])
        if scope["path"] == "/held":
            self.held += 1
            await self.release.wait()
        if scope["path"] == "/body":
            message = {"more_body": True}
            while message.get("more_body"):
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.left += 1
                    return
        size = {"/large": LARGE_BYTES, "/whole": WHOLE_BYTES}.get(scope["path"], 2)
        piece = size if scope["path"] == "/whole" else 2**16
        headers = [(b"content-length", str(size).encode())]
        headers += [(b"connection", b"close")] if scope["path"] == "/closes" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for i in range(0, size, piece):
            await send({"type": "http.response.body", "body": b"x" * min(size, piece), "more_body": i + piece < size})
        self.left += scope["path"] == "/large"


@contextlib.asynccontextmanager
async def running(timeouts=QUICK, limit=100):
    """A server, which can `connect`."""
    with listen(Server(port=0)) as listener:
        app, connections = Application(), Connections(limit, timeouts)
        config = uvicorn.Config(
            app, http=connections.connection, ws="none", lifespan="off", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(30):
                yield Served(app, connections, listener.getsockname())
                assert "Traceback" not in "".join(app.paths)
        finally:
            app.release.set()
            server.should_exit = True
            await serving
        assert not connections.open
        assert not connections.idle
        assert not connections.reserved


class Served:
    def __init__(self, app, connections, address):
        self.app, self.connections, self.address = app, connections, address

    @contextlib.asynccontextmanager
    async def connect(self, sent=b""):
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(sent)
            yield reader, writer
        finally:
            writer.close()

    async def ask(self, sent):
        """All that is answered until the connection is closed."""
        async with self.connect(sent) as (reader, _):
            return await reader.read()

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)


def status(answer):
    return int(answer.split(b" ", 2)[1])


def envelope(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head.lower()
    assert re.search(rb"\r\nx-request-id: [0-9a-f]{32}\r\n", head.lower() + b"\r\n")
    said = json.loads(body)
    assert said == {"code": status(answer), "message": said["message"], "data": None, "error": said["message"]}
    return said["message"]


REFUSED = {
    b"GET / HTTP/1.1\nHost: x\n\n": (400, "without CR"),
    b"GET / HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n": (400, "without CR"),
    b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n": (400, "next line"),
    b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\tc\r\n\r\n": (400, "next line"),
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n": (400, "header line"),
    b"GET / HTTP/1.1\r\n\r\n": (400, "Host"),
    b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n": (400, "Host"),
    b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n": (400, "Host is not a host name"),
    b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n": (400, "Host is not a host name"),
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": (400, "both"),
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n": (400, "both"),
    b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": (400, "HTTP/1.0"),
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n": (501, "chunked"),
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab": (400, "Content-Length"),
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc": (400, "Content-Length"),
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\nab": (400, "Content-Length"),
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\nab": (400, "Content-Length"),
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\nab": (400, "Content-Length"),
    b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n": (400, "chunk"),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n": (400, "request line"),
    b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * HEAD_MAX_BYTES + b"\r\n\r\n": (431, "bytes"),
    b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * HEAD_MAX_BYTES: (431, ""),
}


@pytest.mark.parametrize("sent", REFUSED, ids=lambda sent: str(sent[:60]))
async def test_what_could_be_read_in_two_ways_is_refused_in_the_envelope_and_closed(sent):
    async with running() as served:
        answer = await served.ask(sent)
        code, named = REFUSED[sent]
        assert status(answer) == code
        assert named in envelope(answer)
        assert served.app.paths in ([], ["/body"])


@pytest.mark.parametrize(
    "sent",
    [
        HELLO,
        b"GET / HTTP/1.1\r\nHost: example.org:8000\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: [2001:db8::1]:8000\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 4 \r\n\r\na\n\nb",
        b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\na\n b\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_what_is_right_is_read_in_however_many_pieces(sent, pieces):
    async with running(SLOW) as served, served.connect() as (reader, writer):
        for _ in range(3):  # on one connection
            step = -(-len(sent) // pieces)
            for at in range(0, len(sent), step):
                writer.write(sent[at : at + step])
                await asyncio.sleep(0)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(2) == b"xx"


async def test_a_smuggled_request_is_not_read():
    async with running() as served:
        body = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        head = b"POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n" % len(
            body
        )
        assert status(await served.ask(head + body)) == 400
        assert served.app.paths == []


async def test_who_says_nothing_or_never_ends_a_head_is_closed():
    async with running() as served:
        async with served.connect() as (silent, _), served.connect(b"GET / HT") as (partial, writer):
            assert await silent.read() == b""
            with contextlib.suppress(ConnectionError):
                while not partial._buffer:
                    writer.write(b"x")
                    await asyncio.sleep(0.02)
            assert "too slowly" in envelope(await partial.read())
        async with served.connect(HELLO) as (reader, writer):  # and in its second request
            await reader.readuntil(b"xx")
            writer.write(b"GET")
            assert status(await reader.read()) == 408
        async with served.connect(HELLO) as (reader, writer):
            await reader.readuntil(b"xx")
            await asyncio.sleep(2 * QUICK.head_s)  # it is kept for longer
            writer.write(HELLO)
            await reader.readuntil(b"xx")
            assert await reader.read() == b""  # but not for ever


async def test_a_body_of_a_byte_at_a_time_does_not_hold_a_place():
    async with running() as served:
        head = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        async with served.connect(head) as (silent, _), served.connect(head) as (slow, writer):
            assert "too slowly" in envelope(await silent.read())
            while not slow._buffer:
                writer.write(b"x")
                await asyncio.sleep(0.02)
            assert status(slow._buffer) == 408
        await served.until(lambda: served.app.left == 2)  # who read them is told


async def test_a_body_that_is_quick_enough_passes_however_long_it_takes():
    async with running() as served:
        pieces, piece = 60, b"x" * 1000
        head = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (pieces * len(piece))
        async with served.connect(head) as (reader, writer):
            for _ in range(pieces):
                writer.write(piece)
                await asyncio.sleep(0.03)  # three times as long as the grace; 30,000 bytes a second
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_request_in_work_is_waited_for():
    async with running() as served, served.connect(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n") as (reader, _):
        await served.until(lambda: served.app.held)
        await asyncio.sleep(2 * QUICK.head_s)
        served.app.release.set()
        assert (await reader.readuntil(b"xx")).startswith(b"HTTP/1.1 200")


async def test_who_does_not_read_an_answer_is_closed():
    async with running() as served, served.connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n") as (_, writer):
        writer.transport.pause_reading()
        await served.until(lambda: served.app.left)  # its route has ended, and nothing of it is kept
        assert not served.connections.open


async def test_who_reads_an_answer_slowly_gets_all_of_it():
    async with (
        running() as served,
        served.connect(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as (reader, _),
    ):
        size = 0
        while data := await reader.read(2**21):
            size += len(data)
            await asyncio.sleep(0.02)
        assert size > LARGE_BYTES


async def test_who_reads_in_small_pieces_is_seen_to_read():
    """By what the client takes, not by when the system's buffer of megabytes has room again."""

    async with (
        running(dataclasses.replace(QUICK, reading_rate=400_000)) as served,
        served.connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n") as (reader, _),
    ):
        began, size = time.monotonic(), 0
        while (took_s := time.monotonic() - began) < 2:
            while size < 800_000 * took_s:
                size += len(await reader.read(2**14))
            await asyncio.sleep(0.02)
        assert served.connections.open


@pytest.mark.parametrize("path", [b"/whole", b"/large"])
async def test_who_does_not_read_makes_room_with_a_request_in_work_or_not(path):
    async with running(dataclasses.replace(SLOW, tick_s=0.02, crowded_grace_s=0.05), limit=3) as served:
        opened, asked = served.connections.open, b"GET %s HTTP/1.1\r\nHost: x\r\n" % path
        async with contextlib.AsyncExitStack() as stack:
            for i in range(7):
                ends = b"Connection: close\r\n" * (i % 2)
                _, writer = await stack.enter_async_context(served.connect(asked + ends + b"\r\n"))
                writer.transport.pause_reading()
                await served.until(lambda i=i: len(served.app.paths) > i and all(each.late_s > 0.05 for each in opened))
                assert len(opened) <= 3
            assert set(served.app.paths) == {path.decode()}
            async with served.connect(HELLO) as (reader, _):
                assert (await reader.readuntil(b"xx")).startswith(b"HTTP/1.1 200")


async def test_the_next_request_in_a_row_waits_until_the_answer_is_taken():
    async with running(SLOW) as served:
        asked, paths = b"GET /whole HTTP/1.1\r\nHost: x\r\n", served.app.paths
        async with served.connect(2 * (asked + b"\r\n")) as (reader, writer):

            async def take():
                await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(WHOLE_BYTES)

            await served.until(lambda: paths)
            (connection,) = served.connections.open
            await served.until(lambda: connection.cycle.response_complete)
            await asyncio.sleep(0.1)
            assert paths == ["/whole"]
            await take()
            await served.until(lambda: len(paths) == 2 and connection.cycle.response_complete)
            writer.write(asked)  # a part of a third, while the second's answer is not taken
            await served.until(lambda: connection.conn.trailing_data[0] == asked)
            await take()
            writer.write(b"\r\n")
            await take()
            assert len(paths) == 3


async def test_the_rest_of_a_body_that_was_answered_is_taken_for_a_moment_only():
    async with running() as served:
        head = b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        async with served.connect(head) as (reader, writer):
            assert (await reader.readuntil(b"xx")).startswith(b"HTTP/1.1 200")
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(20):
                    while True:
                        writer.write(bytes(1000))
                        await writer.drain()
                        await asyncio.sleep(0.01)


async def test_a_crowd_that_hangs_up_is_not_read_and_holds_nobody_up():
    """Each has sent its request and left before the loop, busy with this test's connecting, has looked at it."""

    async with running(SLOW, limit=1000) as served:
        await served.ask(b"GET /first HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for _ in range(300):
            with socket.create_connection(served.address) as client:
                client.sendall(b"POST /left HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        assert status(await served.ask(HELLO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) == 200
        assert served.app.paths == ["/first", "/hello"]


async def test_a_crowd_that_stays_is_answered_to_the_last_whatever_its_pieces():
    async with running(SLOW) as served:
        async with contextlib.AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(served.connect()) for _ in range(60)]
            for piece in (b"GET /hello HT", b"TP/1.1\r\nHost: x\r\n\r\nGET /he", b"llo HTTP/1.1\r\nHost: x\r\n\r\n"):
                for _, writer in crowd:
                    writer.write(piece)
                await asyncio.sleep(0)
            for reader, _ in crowd:
                for _ in range(2):
                    assert (await reader.readuntil(b"xx")).startswith(b"HTTP/1.1 200")
        await served.until(lambda: not served.connections.open)
        assert not served.connections.fair_queue._queues


async def test_of_a_body_that_nobody_reads_so_much_is_thrown_away():
    async with running(dataclasses.replace(SLOW, linger_bytes=1_000_000)) as served:
        head = b"POST /closes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        async with served.connect(head) as (reader, writer):
            answer = await reader.read()
            assert status(answer) == 200, "and the end of our side is there, although the body is not"
            sent = 0
            with pytest.raises(ConnectionError):
                while True:
                    writer.write(bytes(100_000))
                    await writer.drain()
                    sent += 100_000
            assert sent >= 1_000_000


async def test_requests_in_a_row_are_answered_in_their_order_and_bounded():
    async with running() as served:
        answer = await served.ask(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(1000)))
        assert served.app.paths == [f"/{i}" for i in range(PIPELINE_MAX + 1)]
        assert answer.count(b"HTTP/1.1 200") == PIPELINE_MAX + 1


async def test_a_full_server_gives_the_places_of_the_idle_to_who_asks():
    async with running(SLOW, limit=10) as served, contextlib.AsyncExitStack() as stack:
        first = [await stack.enter_async_context(served.connect()) for _ in range(10)]
        await served.until(lambda: len(served.connections.open) == 10)
        async with served.connect(HELLO) as (reader, _):
            assert (await reader.readuntil(b"xx")).startswith(b"HTTP/1.1 200")
        told = await first[0][0].read()
        assert status(told) == 503
        assert b"\r\nretry-after: 2\r\n" in told.lower()
        assert "in use" in json.loads(told.partition(b"\r\n\r\n")[2])["error"]


async def test_a_server_full_of_work_answers_health_and_refuses_the_rest():
    async with running(SLOW, limit=10) as served:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(10):
                await stack.enter_async_context(served.connect(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n"))
            await served.until(lambda: served.app.held == 10)
            for _ in range(2 * RESERVED_CONNECTIONS):  # and those beyond, who say nothing, do not keep health out
                await stack.enter_async_context(served.connect())
            for method in (b"GET", b"HEAD"):
                for path in (b"/healthz", b"/readyz", b"/metrics"):
                    answer = await served.ask(method + b" " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert status(answer) == 200
            for asked in (HELLO, b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"):
                answer = await served.ask(asked)
                assert status(answer) == 503
                assert b"\r\nretry-after: 2\r\n" in answer.lower()
                assert "in use" in envelope(answer)
            assert len(served.connections.open) <= 10 + 2 * RESERVED_CONNECTIONS
            served.app.release.set()
        await served.until(lambda: not served.connections.open)
        async with served.connect(HELLO) as (reader, _):
            assert (await reader.readuntil(b"xx")).startswith(b"HTTP/1.1 200")


def opened():
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def descriptors(soft, hard=None):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1] if hard is None else hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_descriptors_is_raised_as_far_as_needed(caplog):
    with descriptors(256):
        assert connection_limit(1000, beside=32) == 1000
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 2 * 1000 + 64 + 16 + 32
        assert connection_limit(100, beside=32) == 100
        assert not caplog.records
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert connection_limit(hard, beside=32) == (hard - 64 - 16 - 32) // 2
    (record,) = caplog.records
    assert f"connections_limited connections_max={(hard - 112) // 2} instead_of={hard}" in record.getMessage()
    assert "LimitNOFILE" in record.getMessage()


async def test_out_of_descriptors_connections_are_refused_and_the_log_stays_small(caplog):
    """Beside a limit of connections that is too high, or files that others have opened."""

    async with running(SLOW) as served:
        used = []
        with descriptors(opened() + 40):
            clients = [socket.socket() for _ in range(20)]
            with contextlib.suppress(OSError):
                while True:
                    used.append(os.open(os.devnull, os.O_RDONLY))
            for client in clients:
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect(served.address)
            told = [await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 100), 5) for client in clients]
            assert {data.split(b" ")[1] for data in told} == {b"503"}
            for each in used:
                os.close(each)
            assert status(await served.ask(HELLO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) == 200
            for client in clients:
                client.close()
    assert len([line for line in caplog.messages if line.startswith("descriptors_exhausted count=")]) == 1


@pytest.mark.long
async def test_a_real_server_waits_for_nobody_for_ever(tmp_path):
    """Heads and bodies of a byte a second, and nothing at all, with the patience that is shipped."""
    begun = {
        "nothing": b"",
        "a head": b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
        "a body": b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"
        b"Content-Type: application/json\r\nContent-Length: 10000\r\n\r\n" % KEY.encode(),
    }

    async def ended(address, sent):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(sent)
        reading, began = asyncio.ensure_future(reader.read()), time.monotonic()
        while not reading.done():
            await asyncio.wait([reading], timeout=1)
            if sent:
                writer.write(b"x")
        writer.close()
        return reading.result(), time.monotonic() - began

    async def all_ended(address):
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            tasks = {what: group.create_task(ended(address, sent)) for what, sent in begun.items()}
        return {what: task.result() for what, task in tasks.items()}

    with api(tmp_path / "home") as server:
        url = httpx.URL(server.url)
        found = await all_ended((url.host, url.port))
        assert server.stop()[0] == 0
    assert found["nothing"][0] == b""
    assert status(found["a head"][0]) == status(found["a body"][0]) == 408
    for what, least_s in (("nothing", SLOW.head_s), ("a head", SLOW.head_s), ("a body", SLOW.body_grace_s)):
        assert least_s - 1 <= found[what][1] <= least_s + 10


def test_the_page_says_what_holds():
    page = (Path(__file__).parents[2] / "docs" / "OPERATIONS.md").read_text().partition("## Connections")[2]
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", page, re.MULTILINE))
    assert rows["time for a request's head"] == f"{SLOW.head_s:g} s"
    assert rows["size of a head"] == f"{HEAD_MAX_BYTES // 1024} KB"
    assert rows["pause within a body"] == f"{SLOW.body_silent_s:g} s"
    assert rows["speed of a body"].startswith(f"{SLOW.body_rate / 1024:g} KB/s on average, {SLOW.body_grace_s:g} s")
    assert rows["speed of a reader"] == f"{SLOW.reading_rate / 1024:g} KB/s, {SLOW.reading_grace_s:g} s aside"
    assert f"{SLOW.reading_grace_s + SLOW.reading_ahead_s:g} s after" in page
    assert SLOW.tick_s == 1, "of two looks, one before the deadline and one behind it, the second closes"
    assert "looked at once a second: each of these times may be up to two seconds longer" in page
    crowded = f"at less than {SLOW.crowded_rate / 1024:g} KB/s, {SLOW.crowded_grace_s:g} s aside, is closed"
    assert crowded in page
    assert rows["a connection without a request"] == f"{SLOW.keep_alive_s:g} s"
    assert rows["requests sent in a row without waiting for answers"] == str(PIPELINE_MAX)
    assert rows["rest of a body that was answered or refused before its end"] == (
        f"{SLOW.linger_bytes >> 20} MiB, {SLOW.linger_known_bytes >> 20} MiB per key; {SLOW.linger_s:g} s; "
        f"a pause of {SLOW.linger_silent_s:g} s"
    )


async def test_a_real_server_with_few_descriptors_answers_health_beside_a_crowd(tmp_path):
    await crowd(tmp_path, 300)


@pytest.mark.long
async def test_a_real_server_with_few_descriptors_answers_health_beside_a_thousand(tmp_path):
    await crowd(tmp_path, 1000)


async def crowd(folder, count):
    """Idle connections that come back as soon as they are closed, to a server that may open 256 files."""
    few = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"]
    with api(folder / "home", within=few) as server:
        url = httpx.URL(server.url)
        took_s, closed = await probed((url.host, url.port), count)
        assert server.stop()[0] == 0
    assert sorted(took_s)[len(took_s) * 9 // 10] < 1  # all were answered; this machine may stand still
    assert closed > count / 2
    assert "connections_limited connections_max=72 instead_of=2000" in server.log
    assert "connections_full count=" in server.log
    assert "Traceback" not in server.log
    assert len(server.log) < 20_000 + 200 * len(took_s)


async def probed(address, count, probes=30):
    """Seconds that health checks take beside idle connections, and how many of those were closed meanwhile."""
    closed, stopping = 0, asyncio.Event()

    async def idle():
        nonlocal closed
        while not stopping.is_set():
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(*address)
                await asyncio.wait(
                    (reading := asyncio.ensure_future(reader.read()), ended), return_when="FIRST_COMPLETED"
                )
                closed += reading.done()
                reading.cancel()
                writer.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), 0.5)

    def probe():
        began = time.monotonic()
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
        return time.monotonic() - began

    ended, took_s = asyncio.ensure_future(stopping.wait()), []
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(idle())
        while len(took_s) < probes or closed <= count / 2:
            took_s.append(await asyncio.to_thread(probe))
        stopping.set()
    return took_s, closed
