"""Chooses the requests of the next step: plain Python without tensors, the same results for the same calls.

Knows a request as a list of token counts (`request.Work`), not its content. The loop calls `batch`, lets the runner
compute that step, and calls `advance`; in between it adds and aborts requests. Time is the *token clock*, the number of
tokens computed so far. There is no wall clock and no chance, so that every schedule can be repeated.

**Order.** Each request has a key. A smaller key goes first, equal keys in the order of arrival:

    fifo    key =             arrived           − priority · priority_weight
    srpt    key = remaining + ageing · arrived  − priority · priority_weight

`arrived` is the token clock when the request came, `remaining` its tokens that are still to be computed. Ageing would
subtract `ageing · (clock − arrived)` from the key of every request that is here. As `ageing · clock` is the same for
all of them, it is left out: the key of a waiting request stays, and newcomers start with a larger `arrived`. So time
changes no key; only computing a request changes its key, and only forward.

**Overtaking bound.** A request that arrives later than r by r's overtaking bound or more, in tokens of the clock, never
has a smaller key:

    fifo    bound of r = (priority of the newcomer − r's) · priority_weight
    srpt    bound of r = (r's tokens in all + (priority of the newcomer − r's) · priority_weight) / ageing

For a newcomer goes before r only while `ageing · (its arrival − r's)` is less than what r has left more than it, plus
the weighted difference of their priorities. With `ageing` 0.1, requests of equal priority overtake r only if they come
while the engine computes ten times r's own work; in fifo never. The bound is finite, so no request starves. How much
*work* arrives within it is up to the clients: a burst of small requests at one moment is served before a large one.

**Halves.** A large request whose overtaking bound is over, or that is nearly done after having waited for others, would
delay a small newcomer by all that it has left. So, in srpt, where the first by key and the *shortest* (the smallest key
without its age) are not the same, they lead steps alternately: the one that has had fewer tokens by leading, since the
two became different, leads the next step. So the first gets half of what is computed meanwhile, up to one step, and so
does the shortest. It too must be admitted already, or fit into the memory as described below.

**A step** is filled in this order, after its leader: the first request takes part even if it is larger than the budget
(it is alone then), each further one if its next tokens still fit. So a request is left out only because those before it
leave no room. If those have `A` tokens to compute (all that was here when r came, and what came within r's overtaking
bound), then r is left out of at most A / (budget − r's largest step + 1) steps, or of A steps if it is larger than the
budget. Waiting for memory comes on top, and so do steps that the shortest leads.

**Memory** and places are given when a request is first computed, kept while it is paused, and promised in the order of
keys: a waiting request is admitted only if it fits beside all admitted ones *and all that wait before it*. So no
request takes memory that one before it is waiting for, and the search ends where the memory does. Admitted ones go on
meanwhile, and what they free goes to the first. All but the first of all, admitted ones included, leave a reserve free
(`Limits`): a small newcomer, which srpt puts before all others, then finds memory, though paused requests have all the
rest. A request so large that it needs the reserve itself gets it when it is first of all and the admitted ones have
ended: nothing is admitted behind it meanwhile, and before it only what comes within its overtaking bound.
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
    """One step: the ids that take part, in order; those of them that are new; their tokens in all."""

    ids: tuple[str, ...]
    admitted: tuple[str, ...]
    tokens: int


class Scheduler:
    """The queue of one engine; `add` and `abort` at any time, `batch` and `advance` alternately.

    `ageing` is the number of tokens of remaining work that a waiting request gains per token that the engine computes
    (srpt only); `priority_weight` is the worth of one level of priority, in tokens.
    """

    def __init__(self, policy: Policy, limits: Limits, ageing: float, priority_weight: int) -> None:
        assert ageing > 0, f"ageing is {ageing}; without it large requests starve"
        assert priority_weight >= 0, f"priority_weight is {priority_weight}; priorities would be reversed"
        self._limits = limits
        self._shortest_first = policy is Policy.SRPT
        self._ageing = ageing if self._shortest_first else 1
        self._priority_weight = priority_weight
        self._clock = 0
        self._arrivals = 0
        self._requests: dict[str, _Request] = {}
        self._waiting: list[_Rank] = []  # sorted; their places never change
        self._waiting_tokens: list[int] = []  # sorted: what their first steps take
        self._waiting_short: list[_Rank] = []  # sorted by what they are in all, whenever they came
        self._lead = 0  # tokens by which the first of all had more than the shortest, since they parted
        self._admitted: dict[str, _Request] = {}
        self._memory_free = limits.memory_bytes
        self._batch: tuple[Batch, list[_Request], _LedBy] | None = None

    def add(self, work: Work) -> None:
        """Enqueue a request.

        Raises InvalidInput if a request of that id is still here, or if it could never be admitted.
        """
        if work.id in self._requests:
            raise InvalidInput(f"id is {work.id!r}; accepted: an id that no current request has")
        if work.memory_bytes > self._limits.memory_bytes:
            raise InvalidInput(
                f"memory_bytes of {work.id!r} is {work.memory_bytes}; accepted: at most {self._limits.memory_bytes}, "
                "the limit for all requests together"
            )
        request = _Request(work, self._arrivals, self._clock, sum(work.steps))
        self._arrivals += 1
        self._requests[work.id] = request
        insort(self._waiting, self._rank(request))
        insort(self._waiting_tokens, request.tokens)
        insort(self._waiting_short, self._rank_as_new(request))

    def abort(self, id: str) -> bool:  # noqa: A002 - what it is
        """Forget a request at once and free what it holds; return whether it was here."""
        request = self._requests.get(id)
        if request is not None:
            self._leave(request)
        return request is not None

    def batch(self) -> Batch:
        """Choose the next step and admit the new requests in it; empty only if no request is here.

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
        for rank in heapq.merge(running, admissible):
            request = self._requests[rank.id]
            if (request.tokens <= room or not chosen) and request is not leader:
                chosen.append(request)
                room -= request.tokens
            if self._waiting_tokens and room < self._waiting_tokens[0]:
                admissible.close()  # no waiting request fits any more: do not look through thousands
        new = [request for request in chosen if request.work.id not in self._admitted]
        for request in new:
            self._admit(request)
        batch = Batch(_ids(chosen), _ids(new), self._limits.tokens - room)
        self._batch = batch, chosen, led
        return batch

    def advance(self, batch: Batch) -> tuple[str, ...]:
        """Count the step as done; return the ids whose last step it was, which are removed.

        `batch` is the latest. Requests aborted since it was made are skipped, also if their id is in use again.
        """
        assert self._batch is not None, "a step was computed that was not requested"
        latest, chosen, led = self._batch
        assert batch is latest, "the computed step is not the latest one that was requested"
        self._batch = None
        self._clock += batch.tokens
        if led is _LedBy.SHORTEST:
            self._lead -= batch.tokens
        else:  # together, the first pays what it owes; what the shortest owes is forgotten
            lead = self._lead + batch.tokens
            self._lead = lead if led is _LedBy.FIRST else min(lead, 0)
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
        """The token clock: tokens computed since the start."""
        return self._clock

    @property
    def remaining(self) -> int:
        """Tokens still to be computed, of all requests."""
        return sum(request.remaining for request in self._requests.values())

    @property
    def waiting(self) -> int:
        """Number of requests that have not begun."""
        return len(self._waiting)

    @property
    def admitted(self) -> int:
        """Number of requests that have begun, including paused ones."""
        return len(self._admitted)

    def _rank(self, request: _Request) -> _Rank:
        remaining = request.remaining if self._shortest_first else 0
        key = remaining + self._ageing * request.arrived - request.work.priority * self._priority_weight
        return _Rank(key, request.number, request.work.id)

    def _rank_as_new(self, request: _Request) -> _Rank:
        """Return the place that a request would have if it had arrived just now."""
        key = request.remaining - request.work.priority * self._priority_weight
        return _Rank(key, request.number, request.work.id)

    def _leader(self, running: Sequence[_Rank]) -> tuple[_Request | None, _LedBy]:
        """Return the shortest request if it leads the next step, and who leads."""
        if not self._shortest_first:
            return None, _LedBy.BOTH
        shortest = min((self._rank_as_new(self._requests[rank.id]) for rank in running), default=None)
        if self._waiting_short and (shortest is None or self._waiting_short[0] < shortest):
            waiting = self._waiting_short[0]
            if any(rank.id == waiting.id for rank in self._admissible(running)):
                shortest = waiting
        first = min([*running[:1], *islice(self._admissible(running), 1)], default=None)
        if shortest is None or first is None or shortest.id == first.id:  # with none admitted, the first leads
            return None, _LedBy.BOTH
        if self._lead < 0:
            return None, _LedBy.FIRST
        return self._requests[shortest.id], _LedBy.SHORTEST

    def _running(self) -> list[_Rank]:
        """Return the admitted requests, in order."""
        return sorted(self._rank(request) for request in self._admitted.values())

    def _admissible(self, running: Sequence[_Rank]) -> Generator[_Rank, None, None]:
        """Yield the waiting requests, in order, as far as memory and places suffice for each and all before it."""
        memory = self._memory_free
        limits = self._limits
        for count, rank in enumerate(self._waiting, len(running) + 1):
            is_first = rank is self._waiting[0] and (not running or rank < running[0])
            memory -= self._requests[rank.id].work.memory_bytes
            if memory < (0 if is_first else limits.reserve_bytes):
                return
            if limits.requests is not None and count > limits.requests - (0 if is_first else limits.reserve_requests):
                return
            yield rank

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
        del self._waiting[bisect_left(self._waiting, self._rank(request))]
        del self._waiting_short[bisect_left(self._waiting_short, self._rank_as_new(request))]
        del self._waiting_tokens[bisect_left(self._waiting_tokens, request.tokens)]


class _LedBy(Enum):
    """Who leads a step."""

    BOTH = auto()  # the first is the shortest
    FIRST = auto()
    SHORTEST = auto()


class _Rank(NamedTuple):
    """A request's place in the order: compared by key, then by number of arrival; no two are equal."""

    key: float
    number: int
    id: str


@dataclass(slots=True, eq=False)
class _Request:
    """A request and its progress."""

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
