"""Who takes part in the next step: plain Python without tensors, the same answers to the same calls.

Knows a request as a list of token counts (`request.Work`), not what it draws. The loop calls `batch`, lets the runner
compute that step, calls `advance`, and adds and aborts requests in between. Time is the *work clock*, the tokens that
were computed so far: no wall clock and no chance, so that every schedule can be repeated.

**Order.** Each request has a key; a smaller key goes first, equal ones in the order of arrival:

    fifo    key =             arrived           − priority · head_start
    srpt    key = remaining + ageing · arrived  − priority · head_start

`arrived` is the clock when the request came, `remaining` its tokens that are still to be computed. To age would be to
take `ageing · (clock − arrived)` from the key of everyone who is here. As `ageing · clock` is the same for all of them,
it is left out: a request ages by standing still, while newcomers start with a larger `arrived`. So time changes no key;
only who was computed moves, and only forward.

**Patience.** Whoever arrives later than r by its patience or more, in tokens of the clock, never has a smaller key:

    fifo    patience of r =                   (priority of the newcomer − r's) · head_start
    srpt    patience of r = (r's tokens in all + (priority of the newcomer − r's) · head_start) / ageing

For a newcomer is before r only while `ageing · (its arrival − r's)` is less than what r has left over it, plus the
difference of their priorities in head starts. With `ageing` 0.1, r is overtaken by its equals only if they come while
the engine computes ten times r's own work; in fifo never. Patience is finite, so nobody starves. How much *work* comes
within it is up to the clients: a burst of small requests at one moment is served before a large one.

**Halves.** A large request whose patience is over, or that is nearly done after having waited for its equals, would
hold a small newcomer up for all that it has left. So, in srpt, where the first by key and the *shortest* (the smallest
key without its age) are not the same, they lead steps by turns: whoever has had fewer tokens by leading, since they
parted, leads the next. So of what is computed meanwhile the first has half, but for one step, and so has the shortest;
it too must be admitted already, or fit into the memory as is said below.

**A step** is filled in this order, behind who leads it: the first request takes part even if it is larger than the
budget (it is alone then), each further one if its next tokens still fit. So a request is left out only because those
before it leave no room. If those have `A` tokens to compute (all that was here when r came, and what came within r's
patience), then r is left out of at most A / (budget − r's largest step + 1) steps, or of A steps if it is larger than
the budget; waiting for memory comes on top, and so do steps that the shortest leads.

**Memory** and places are given when a request is first computed, kept while it is paused, and promised in the order of
keys: one that waits is admitted only if it fits beside all admitted ones *and all that wait before it*. So nobody takes
memory that someone before it is waiting for, and the search ends where the memory does. Admitted ones go on meanwhile,
and what they free is the first one's. Whoever is not first of all, admitted ones included, leaves a reserve free
(`Limits`): a small newcomer, which srpt puts before all others, then finds memory, though paused ones have all the
rest. One so large that it needs the reserve itself gets it when it is first of all, and the admitted ones have ended:
nobody is admitted behind it meanwhile, and before it only who comes within its patience.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from typing import NamedTuple

from hidream.engine.request import Limits, Policy, Work
from hidream.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: the ids that take part, in order; those of them that are new, to be prepared; their tokens in all."""

    ids: tuple[str, ...]
    admitted: tuple[str, ...]
    tokens: int


class Scheduler:
    """The queue of one engine; `add` and `abort` at any time, `batch` and `advance` in turn.

    `ageing` is how many tokens of remaining work a request makes up for per token that the engine computes meanwhile
    (srpt only); `head_start` is what one level of priority is worth, in tokens.
    """

    def __init__(self, policy: Policy, limits: Limits, ageing: float, head_start: int) -> None:
        assert ageing > 0, f"ageing is {ageing}; without it large requests starve"
        assert head_start >= 0, f"head_start is {head_start}; priorities would be turned round"
        self._limits = limits
        self._shortest_first = policy is Policy.SRPT
        self._ageing = ageing if self._shortest_first else 1
        self._head_start = head_start
        self._clock = 0
        self._arrivals = 0
        self._requests: dict[str, _Request] = {}
        self._waiting: list[_Place] = []  # sorted; their places never change
        self._waiting_tokens: list[int] = []  # sorted: what their first steps take
        self._waiting_short: list[_Place] = []  # sorted by what they are in all, whenever they came
        self._lead = 0  # tokens by which the first of all had more than the shortest, since they parted
        self._admitted: dict[str, _Request] = {}
        self._memory_free = limits.memory_bytes
        self._batch: tuple[Batch, list[_Request], _Led] | None = None

    def add(self, work: Work) -> None:
        """Let a request wait for its first step.

        Raises InvalidInput if a request of that id is still here, or if it could never be admitted.
        """
        if work.id in self._requests:
            raise InvalidInput(f"id is {work.id!r}; accepted: one that no request has that is still here")
        if work.memory_bytes > self._limits.memory_bytes:
            raise InvalidInput(
                f"memory_bytes of {work.id!r} is {work.memory_bytes}; accepted: at most {self._limits.memory_bytes}, "
                "which is what the engine may give to all requests together"
            )
        request = _Request(work, self._arrivals, self._clock, sum(work.steps))
        self._arrivals += 1
        self._requests[work.id] = request
        insort(self._waiting, self._place(request))
        insort(self._waiting_tokens, request.tokens)
        insort(self._waiting_short, self._short(request))

    def abort(self, id: str) -> bool:  # noqa: A002 - what it is
        """Forget a request at once and free what it holds; whether there was one."""
        request = self._requests.get(id)
        if request is not None:
            self._leave(request)
        return request is not None

    def batch(self) -> Batch:
        """Choose the next step and admit whoever is new in it; empty only if no request is here.

        A step that failed counts as not done if `batch` is called again instead of `advance`.
        """
        chosen: list[_Request] = []
        room = self._limits.tokens
        running = self._running()
        leader, led = self._leader(running)
        if leader is not None:
            chosen.append(leader)
            room -= leader.tokens
        admissible = self._admissible(running)
        for place in heapq.merge(running, admissible):
            request = self._requests[place.id]
            if (request.tokens <= room or not chosen) and request is not leader:
                chosen.append(request)
                room -= request.tokens
            if self._waiting_tokens and room < self._waiting_tokens[0]:
                admissible.close()  # nobody who waits fits any more: do not look through thousands
        new = [request for request in chosen if request.work.id not in self._admitted]
        for request in new:
            self._admit(request)
        batch = Batch(_ids(chosen), _ids(new), self._limits.tokens - room)
        self._batch = batch, chosen, led
        return batch

    def advance(self, batch: Batch) -> tuple[str, ...]:
        """Count the step as done; the ids whose last step it was, which are gone with that.

        `batch` is the latest. Whoever was aborted since it was made is passed over, also if its id came back.
        """
        assert self._batch is not None, "a step was done that nobody had asked for"
        latest, chosen, led = self._batch
        assert batch is latest, "the step that was done is not the latest that was asked for"
        self._batch = None
        self._clock += batch.tokens
        if led is _Led.BY_SHORTEST:
            self._lead -= batch.tokens
        else:  # together, the first pays what it is owed; what the shortest is owed is forgotten
            lead = self._lead + batch.tokens
            self._lead = lead if led is _Led.BY_FIRST else min(lead, 0)
        computed = [request for request in chosen if self._requests.get(request.work.id) is request]
        for request in computed:
            request.remaining -= request.tokens
            request.step += 1
        finished = [request for request in computed if not request.remaining]
        for request in finished:
            self._leave(request)
        return _ids(finished)

    @property
    def clock(self) -> int:
        """Tokens that were computed since the start."""
        return self._clock

    @property
    def remaining(self) -> int:
        """Tokens that are still to be computed for all requests together."""
        return sum(request.remaining for request in self._requests.values())

    @property
    def waiting(self) -> int:
        """How many requests have not begun."""
        return len(self._waiting)

    @property
    def admitted(self) -> int:
        """How many requests have begun, paused ones among them."""
        return len(self._admitted)

    def _place(self, request: _Request) -> _Place:
        remaining = request.remaining if self._shortest_first else 0
        key = remaining + self._ageing * request.arrived - request.work.priority * self._head_start
        return _Place(key, request.number, request.work.id)

    def _short(self, request: _Request) -> _Place:
        """Where a request would stand if it had come just now."""
        key = request.remaining - request.work.priority * self._head_start
        return _Place(key, request.number, request.work.id)

    def _leader(self, running: Sequence[_Place]) -> tuple[_Request | None, _Led]:
        """Say whether the shortest leads the next step, then who that is; and if it is another than the first."""
        if not self._shortest_first:
            return None, _Led.TOGETHER
        shortest = min((self._short(self._requests[place.id]) for place in running), default=None)
        if self._waiting_short and (shortest is None or self._waiting_short[0] < shortest):
            waiting = self._waiting_short[0]
            if any(place.id == waiting.id for place in self._admissible(running)):
                shortest = waiting
        first = min([*running[:1], *islice(self._admissible(running), 1)], default=None)
        if shortest is None or first is None or shortest.id == first.id:  # with none admitted, the first leads
            return None, _Led.TOGETHER
        if self._lead < 0:
            return None, _Led.BY_FIRST
        return self._requests[shortest.id], _Led.BY_SHORTEST

    def _running(self) -> list[_Place]:
        """The admitted, in order."""
        return sorted(self._place(request) for request in self._admitted.values())

    def _admissible(self, running: Sequence[_Place]) -> Generator[_Place, None, None]:
        """Those that wait, in order, as far as memory and places suffice for each and all before it."""
        memory = self._memory_free
        limits = self._limits
        for count, place in enumerate(self._waiting, len(running) + 1):
            is_first = place is self._waiting[0] and (not running or place < running[0])
            memory -= self._requests[place.id].work.memory_bytes
            if memory < (0 if is_first else limits.reserve_bytes):
                return
            if limits.requests is not None and count > limits.requests - (0 if is_first else limits.reserve_requests):
                return
            yield place

    def _admit(self, request: _Request) -> None:
        self._stop_waiting(request)
        self._admitted[request.work.id] = request
        self._memory_free -= request.work.memory_bytes

    def _leave(self, request: _Request) -> None:
        if self._admitted.pop(request.work.id, None) is None:
            self._stop_waiting(request)
        else:
            self._memory_free += request.work.memory_bytes
        del self._requests[request.work.id]

    def _stop_waiting(self, request: _Request) -> None:
        del self._waiting[bisect_left(self._waiting, self._place(request))]
        del self._waiting_short[bisect_left(self._waiting_short, self._short(request))]
        del self._waiting_tokens[bisect_left(self._waiting_tokens, request.tokens)]


class _Led(Enum):
    """By whom a step is led."""

    TOGETHER = auto()  # the first is the shortest
    BY_FIRST = auto()
    BY_SHORTEST = auto()


class _Place(NamedTuple):
    """Where a request stands: compared by key, then by number of arrival; no two are equal."""

    key: float
    number: int
    id: str


@dataclass(slots=True, eq=False)
class _Request:
    """A request that is here, and how far it is."""

    work: Work
    number: int
    arrived: int
    remaining: int
    step: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of its next step."""
        return self.work.steps[self.step]


def _ids(requests: Iterable[_Request]) -> tuple[str, ...]:
    return tuple(request.work.id for request in requests)
