"""A receiver of webhooks on a real socket with scripted behaviour; it records what it receives."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Received:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """`async with Receiver(says(200)) as receiver`: listens on a free port of `host`."""

    behaviour: Behaviour
    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    connections: int = 0
    received: list[Received] = field(default_factory=list)
    port: int = 0
    _talking: set[asyncio.Task] = field(default_factory=set)

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._connected, self.host, self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._talking:
            task.cancel()
        await asyncio.gather(*self._talking, return_exceptions=True)

    def url(self, host=None, path="/hook"):
        return f"{'https' if self.tls else 'http'}://{host or self.host}:{self.port}{path}"

    async def _connected(self, reader, writer):
        self.connections += 1
        task = asyncio.current_task()
        self._talking.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):  # ENOTCONN is no ConnectionError
                await self._talk(reader, writer)
        finally:
            self._talking.discard(task)
            writer.transport.abort()

    async def _talk(self, reader, writer):
        line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")[:-2]
        headers = {name.lower(): value for name, value in (entry.split(": ", 1) for entry in fields)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.received.append(Received(line, headers, body))
        await self.behaviour(writer)
        await writer.drain()
        writer.write_eof() if not self.tls else None
        await reader.read()  # until the other side closes


def says(status: int, *fields: str, body: bytes = b"") -> Behaviour:
    """Answer as one should."""

    async def answer(writer):
        head = [f"HTTP/1.1 {status} Whatever", *fields, f"Content-Length: {len(body)}"]
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)

    return answer


def sends(*data: bytes, every_s: float = 0.0) -> Behaviour:
    """Send the first as it is, and then the last for ever."""

    async def answer(writer):
        for some in data:
            writer.write(some)
        while True:
            await writer.drain()
            await asyncio.sleep(every_s)
            writer.write(data[-1])

    return answer


async def hangs(writer):
    await asyncio.Event().wait()


async def closes(writer):
    writer.close()


@contextmanager
def deaf_port():
    """A port where nobody listens, and where nobody else can as long as this is open."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@asynccontextmanager
async def unheard():
    """A server that accepts connections and never says a word: its port, and what is set when one was closed."""
    closed = asyncio.Event()

    async def listen(reader, writer):
        while await reader.read(1000):
            pass
        closed.set()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], closed
