"""A server and a clock for the generators of the client, without input and output: see `World`."""

import json
from dataclasses import dataclass, field, replace

import httpx

from hidream.client.connection import connect
from hidream.client.effects import Close, Emit, Open, Read, Response, Send, Sleep
from hidream.client.retries import Retry

TASK = {"id": "6488c2754f6f4dfea924382fa14d11bd", "model": "wavespeed-ai/hidream-i1-dev", "status": "created"}
DONE = TASK | {"status": "completed", "outputs": ["http://files/1.png"], "seed": 7, "executionTime": 1130}
EPOCH_S = 1_763_856_000.0


def says(data, status=200, **headers):
    """An answer of the API; `retry_after="3"` is a header."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"code": status, "message": "success", "data": data} if status == 200 else {"code": status, "message": data}
    return Response(status, names | {"x-request-id": "r1"}, json.dumps(body).encode())


@dataclass
class World:
    """Plays calls against `answer(request)`, which returns a Response, a list of bytes for a stream, or an error.

    In a stream there may be errors, too, and functions that give the bytes when they are read.
    """

    answer: object
    now_s: float = 0.0
    sent: list = field(default_factory=list)
    slept: list = field(default_factory=list)
    emitted: list = field(default_factory=list)

    def connection(self, attempts=4, timeout_s=600, **arguments):
        retry = Retry(attempts=attempts, random=lambda: 0.0)
        made = connect("http://server", "hd_key", "dev", timeout_s, retry, {}, **arguments)
        return replace(made, now_s=lambda: EPOCH_S + self.now_s, clock_s=lambda: self.now_s)

    def run(self, steps):
        """Run a call; return its result. What it emits is in `emitted`."""
        reply, error, stream = None, None, iter(())
        while True:
            try:
                effect = steps.send(reply) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            reply, error = None, None
            match effect:
                case Send(request, _) | Open(request, _):
                    self.sent.append(request)
                    reply = self.answer(request)
                    if isinstance(reply, list):
                        stream = iter(reply)
                        reply = Response(200, {"content-type": "text/event-stream"}, b"")
                case Read():
                    piece = next(stream, b"")
                    reply = piece() if callable(piece) else piece
                case Sleep(seconds):
                    self.slept.append(seconds)
                    self.now_s += seconds
                case Emit(value):
                    self.emitted.append(value)
                case Close():
                    stream = iter(())
            if isinstance(reply, httpx.RequestError):
                reply, error = None, reply


def in_turn(*answers):
    """Answer each request with the next of these; the last one stays."""
    left = list(answers)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]
