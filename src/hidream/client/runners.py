"""Carries out the effects of `calls` and `events` with httpx: `Runner` in a thread, `AsyncRunner` in an event loop.

Both are the same, line by line, but for `await`. Nothing else in this package waits for anything.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any, Generic, TypeVar

import httpx

from hidream.client.effects import Close, Effect, Emit, Open, Read, Request, Response, Send, Sleep, Steps
from hidream.errors import ServerError

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Each thread or task of the user may have a request of its own; 20 is httpx's default."""
CONTENT_MAX_BYTES = 2**29
"""The longest response that is read. Four images of 2048² as base64, the most that a task has, are a seventh of it."""

T = TypeVar("T")
Outcome = tuple[Any, Exception | None]


class Play(Generic[T]):
    """A generator of effects, while it runs: the effect that it waits for, None at its end, and then its result."""

    effect: Effect | None
    result: T

    def __init__(self, steps: Steps[T]) -> None:
        self._steps = steps
        self.resume(None, None)

    def resume(self, reply: Any, error: Exception | None) -> None:  # noqa: ANN401 - each effect has its own reply
        """Give the reply to the effect, or the error that came of it."""
        try:
            self.effect = self._steps.send(reply) if error is None else self._steps.throw(error)
        except StopIteration as end:
            self.effect, self.result = None, end.value


class Runner:
    """Runs calls in the thread of their caller; threads may share it."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def run(self, steps: Steps[T]) -> T:
        """Run a call to its end."""
        play = Play(steps)
        while play.effect is not None:
            play.resume(*self._outcome(play.effect, Stream(self.http)))
        return play.result

    def iterate(self, steps: Steps[None]) -> Generator[Any, None, None]:
        """Run a call, and give what it emits."""
        play, stream = Play(steps), Stream(self.http)
        try:
            while play.effect is not None:
                if isinstance(play.effect, Emit):
                    yield play.effect.value
                play.resume(*self._outcome(play.effect, stream))
        finally:
            stream.close()

    def _outcome(self, effect: Effect, stream: Stream) -> Outcome:
        try:
            return self._reply(effect, stream), None
        except (httpx.InvalidURL, UnicodeError) as error:
            return None, httpx.UnsupportedProtocol(str(error))
        except (httpx.RequestError, ServerError) as error:
            return None, error

    def _reply(self, effect: Effect, stream: Stream) -> Any:  # noqa: ANN401
        match effect:
            case Send(request, until_s):
                return self._send(request, until_s)
            case Open(request, until_s):
                return stream.open(request, until_s)
            case Read():
                return stream.read()
            case Close():
                stream.close()
            case Sleep(seconds):
                time.sleep(seconds)
        return None

    def _send(self, request: Request, until_s: float) -> Response:
        with self.http.stream(**_arguments(request, until_s), follow_redirects=request.redirects) as response:
            return _whole(response, _content(response, until_s))


class Stream:
    """The response of which only the head was read, if there is one."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        self.response: httpx.Response | None = None

    def open(self, request: Request, until_s: float) -> Response:
        """Send a request; the response to anything but a success is read whole."""
        self.close()
        sent = self.http.build_request(**_arguments(request, until_s))
        self.response = response = self.http.send(sent, stream=True)
        self._data = response.iter_bytes()
        return _whole(response, b"" if response.is_success else _content(response, until_s))

    def read(self) -> bytes:
        """Read what has arrived; b"" at the end."""
        return next(self._data, b"")

    def close(self) -> None:
        """Close the response."""
        if self.response is not None:
            self.response.close()
        self.response = None


class AsyncRunner:
    """Runs calls in an event loop, of asyncio or trio."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def run(self, steps: Steps[T]) -> T:
        """Run a call to its end."""
        play = Play(steps)
        while play.effect is not None:
            play.resume(*await self._outcome(play.effect, AsyncStream(self.http)))
        return play.result

    async def iterate(self, steps: Steps[None]) -> AsyncGenerator[Any, None]:
        """Run a call, and give what it emits."""
        play, stream = Play(steps), AsyncStream(self.http)
        try:
            while play.effect is not None:
                if isinstance(play.effect, Emit):
                    yield play.effect.value
                play.resume(*await self._outcome(play.effect, stream))
        finally:
            await stream.close()

    async def _outcome(self, effect: Effect, stream: AsyncStream) -> Outcome:
        try:
            return await self._reply(effect, stream), None
        except (httpx.InvalidURL, UnicodeError) as error:
            return None, httpx.UnsupportedProtocol(str(error))
        except (httpx.RequestError, ServerError) as error:
            return None, error

    async def _reply(self, effect: Effect, stream: AsyncStream) -> Any:  # noqa: ANN401
        match effect:
            case Send(request, until_s):
                return await self._send(request, until_s)
            case Open(request, until_s):
                return await stream.open(request, until_s)
            case Read():
                return await stream.read()
            case Close():
                await stream.close()
            case Sleep(seconds):
                import anyio  # httpx has it; the other client does without it

                await anyio.sleep(seconds)
        return None

    async def _send(self, request: Request, until_s: float) -> Response:
        async with self.http.stream(**_arguments(request, until_s), follow_redirects=request.redirects) as response:
            return _whole(response, await _content_async(response, until_s))


class AsyncStream:
    """The response of which only the head was read, if there is one."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.response: httpx.Response | None = None

    async def open(self, request: Request, until_s: float) -> Response:
        """Send a request; the response to anything but a success is read whole."""
        await self.close()
        sent = self.http.build_request(**_arguments(request, until_s))
        self.response = response = await self.http.send(sent, stream=True)
        self._data = response.aiter_bytes()
        return _whole(response, b"" if response.is_success else await _content_async(response, until_s))

    async def read(self) -> bytes:
        """Read what has arrived; b"" at the end."""
        return await anext(self._data, b"")

    async def close(self) -> None:
        """Close the response."""
        if self.response is not None:
            await self.response.aclose()
        self.response = None


def _arguments(request: Request, until_s: float) -> dict[str, Any]:
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        raise httpx.ReadTimeout("no time is left")
    return request.arguments(left_s)


def _content(response: httpx.Response, until_s: float) -> bytes:
    content = bytearray()
    for data in response.iter_bytes():
        content += data
        _check(len(content), until_s, response)
    return bytes(content)


async def _content_async(response: httpx.Response, until_s: float) -> bytes:
    content = bytearray()
    async for data in response.aiter_bytes():
        content += data
        _check(len(content), until_s, response)
    return bytes(content)


def _check(size_bytes: int, until_s: float, response: httpx.Response) -> None:
    """Raise ReadTimeout if a response comes in so slowly that the time is over; httpx only limits each silence.

    Raises ServerError if it is too long, which a few compressed bytes can be.
    """
    if time.monotonic() > until_s:
        raise httpx.ReadTimeout("the response was not complete in time", request=response.request)
    if size_bytes > CONTENT_MAX_BYTES:
        raise ServerError(f"the response has more than {CONTENT_MAX_BYTES} bytes")


def _whole(response: httpx.Response, content: bytes) -> Response:
    headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
    return Response(response.status_code, headers, content)
