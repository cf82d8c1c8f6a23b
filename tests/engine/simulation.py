"""Drives the scheduler without a model, with a ledger that checks every step.

The ledger knows only what was said to the scheduler and what it answered. It works out order, patience and memory a
second time, from the formulas of `scheduler.py`'s docstring and with no thought of speed. `schedule` is one random
life of an engine, `responses` a stream of images of mixed sizes.
"""

from dataclasses import dataclass
from fractions import Fraction
from random import Random

from hidream.engine.request import Limits, Policy, Work
from hidream.engine.scheduler import Batch, Scheduler
from hidream.errors import InvalidInput

AGEINGS = (1 / 16, 1 / 4, 1.0, 4.0)
"""Powers of two: the scheduler's floats are exact then, and ties are ties for the ledger too."""


@dataclass(eq=False)
class Entry:
    """One request, as the ledger sees it."""

    work: Work
    number: int
    arrived: int
    before_tokens: int
    """All the tokens that may be computed before it, by the promise of patience."""
    step: int = 0
    left_out: int = 0
    """Steps in which it might have taken part, had there been room."""
    admitted: bool = False

    @property
    def tokens(self) -> int:
        return self.work.steps[self.step]

    @property
    def remaining(self) -> int:
        return sum(self.work.steps[self.step :])


class Ledger:
    """A scheduler, and judgement on whatever it answers: an AssertionError says what was wrong."""

    def __init__(self, policy: Policy, limits: Limits, ageing: float = 1.0, priority_weight: int = 0) -> None:
        self.scheduler = Scheduler(policy, limits, ageing, priority_weight)
        self.policy, self.limits, self.priority_weight = policy, limits, priority_weight
        self.ageing = Fraction(ageing) if policy is Policy.SRPT else Fraction(1)
        self.present: dict[str, Entry] = {}
        self.clock = 0
        self.arrivals = 0
        self.lead = 0
        """Tokens by which the first had more than the shortest by leading steps, since they were not the same."""
        self.history: list[Batch] = []
        self.ended: dict[str, int] = {}  # the clock when its last step was done

    def add(self, work: Work) -> bool:
        """Add it; whether the scheduler took it, which it must unless it has a reason."""
        reason = work.id in self.present or work.memory_bytes > self.limits.memory_bytes
        try:
            self.scheduler.add(work)
        except InvalidInput:
            assert reason, f"{work} was refused"
            return False
        assert not reason, f"{work} was accepted"
        newcomer = Entry(work, self.arrivals, self.clock, sum(entry.remaining for entry in self.present.values()))
        for entry in self.present.values():
            if self.may_be_before(newcomer, entry):
                entry.before_tokens += newcomer.remaining
        self.present[work.id] = newcomer
        self.arrivals += 1
        self.count()
        return True

    def abort(self, id_: str) -> None:
        there = self.present.pop(id_, None) is not None
        assert self.scheduler.abort(id_) is there, f"abort of {id_}, there: {there}"
        self.count()

    def step(self) -> Batch:
        """One step without a break."""
        batch = self.begin()
        self.end(batch)
        return batch

    def begin(self) -> Batch:
        batch = self.scheduler.batch()
        self.judge(batch)
        for id_ in batch.admitted:
            self.present[id_].admitted = True
        self.computing = [self.present[id_] for id_ in batch.ids]
        self.history.append(batch)
        self.count()
        return batch

    def end(self, batch: Batch) -> None:
        done = self.scheduler.advance(batch)
        self.clock += batch.tokens
        if self.led == "shortest":
            self.lead -= batch.tokens
        else:
            self.lead = self.lead + batch.tokens if self.led == "first" else min(0, self.lead + batch.tokens)
        mine = [entry for entry in self.computing if self.present.get(entry.work.id) is entry]
        for entry in mine:
            entry.step += 1
        finished = [entry.work.id for entry in mine if not entry.remaining]
        assert list(done) == finished, f"{done} are said to be done, {finished} are"
        for id_ in finished:
            del self.present[id_]
            self.ended[id_] = self.clock
        self.count()

    def drain(self) -> None:
        """Go on until everyone is done: nobody starves, no step is idle."""
        steps_left = sum(len(entry.work.steps) - entry.step for entry in self.present.values())
        while self.present:
            assert steps_left > 0, f"{list(self.present)} never end"
            self.step()
            steps_left -= 1
        assert self.scheduler.batch() == Batch((), (), 0), "something is left in an empty engine"

    def judge(self, batch: Batch) -> None:
        """Everything that is promised of one step."""
        assert bool(batch.ids) == bool(self.present), f"idle with {list(self.present)}"
        assert set(batch.ids) <= set(self.present), f"{batch.ids}, but here are {list(self.present)}"
        ranked = sorted(self.present.values(), key=self.key)
        leader = self.leader(ranked)
        order = sorted(ranked, key=lambda entry: entry is not leader)
        chosen = [entry for entry in order if entry.work.id in batch.ids]
        new = [entry for entry in chosen if not entry.admitted]
        assert list(batch.ids) == [entry.work.id for entry in chosen], f"{batch.ids} are not in order, or one is twice"
        assert list(batch.admitted) == [entry.work.id for entry in new], f"{batch.admitted} are said to be new"
        assert batch.tokens == sum(entry.tokens for entry in chosen), f"{batch} counts wrongly"
        assert batch.tokens <= self.limits.tokens or len(chosen) == 1, f"{batch} is more than {self.limits}"
        held = new + [entry for entry in ranked if entry.admitted]
        assert self.fits(held), f"{[entry.work for entry in held]} hold more than {self.limits}"
        for entry in ranked:
            if not self.may_run(entry, ranked):
                assert entry not in chosen, f"{entry} takes what is promised to those before it"
            elif entry not in chosen:
                self.judge_absence(entry, chosen, leader)

    def leader(self, ranked: list[Entry]) -> Entry | None:
        """Who leads the next step instead of the first: the shortest, unless it has had more by that."""
        here = [entry for entry in ranked if self.may_run(entry, ranked)]
        if not here or self.policy is not Policy.SRPT:
            self.led = "together"
            return None
        shortest = min(self.present.values(), key=self.short_key)
        if not self.may_run(
            shortest, ranked
        ):  # the shortest of all waits for memory; nobody else is tried in its place
            shortest = min((e for e in ranked if e.admitted), key=self.short_key, default=here[0])
        by_shortest = "shortest" if self.lead >= 0 else "first"
        self.led = "together" if shortest is here[0] else by_shortest
        return shortest if self.led == "shortest" else None

    def short_key(self, entry: Entry) -> tuple[int, int]:
        return entry.remaining - entry.work.priority * self.priority_weight, entry.number

    def judge_absence(self, entry: Entry, chosen: list[Entry], leader: Entry | None) -> None:
        """Only those before it may leave it out, and only so often; and who leads, whose tokens are counted apart."""
        room = self.limits.tokens - entry.tokens
        before = [other.tokens for other in chosen if other is leader or self.key(other) < self.key(entry)]
        assert before, f"{entry} is the first, but left out of {chosen}"
        assert sum(before) > room, f"{entry} fits beside those before it in {chosen}"
        if leader is not None:
            return
        early = [other.tokens for other in chosen if self.may_be_before(other, entry)]
        assert sum(early) > room, f"{entry} is left out for those that came after its patience: {chosen}"
        entry.left_out += 1
        least = max(1, self.limits.tokens - max(entry.work.steps) + 1)
        assert entry.left_out * least <= entry.before_tokens, f"{entry} was left out too often"

    def key(self, entry: Entry) -> tuple[Fraction, int]:
        remaining = entry.remaining if self.policy is Policy.SRPT else 0
        return remaining + self.ageing * entry.arrived - entry.work.priority * self.priority_weight, entry.number

    def may_be_before(self, other: Entry, entry: Entry) -> bool:
        """Whether patience allows that `other` goes before `entry` at any time."""
        own = sum(entry.work.steps) if self.policy is Policy.SRPT else 0
        overtaking_bound = (own + (other.work.priority - entry.work.priority) * self.priority_weight) / self.ageing
        return other.number < entry.number or other.arrived - entry.arrived < overtaking_bound

    def may_run(self, entry: Entry, ranked: list[Entry]) -> bool:
        """Whether memory and places are there for it and for all that wait before it, and the reserve for the first."""
        before = ranked[: ranked.index(entry) + 1]
        held = [other for other in ranked if other.admitted or other in before]
        return entry.admitted or self.fits(held, reserve=entry is not ranked[0])

    def fits(self, entries: list[Entry], reserve: bool = False) -> bool:
        memory_bytes, requests = self.limits.memory_bytes, self.limits.requests or 10**9
        if reserve:
            memory_bytes -= self.limits.memory_bytes // 8
            requests -= 1 if requests > 1 else 0
        return sum(entry.work.memory_bytes for entry in entries) <= memory_bytes and len(entries) <= requests

    def count(self) -> None:
        """The numbers that the scheduler publishes are the ledger's."""
        admitted = sum(entry.admitted for entry in self.present.values())
        published = self.scheduler
        assert published.admitted == admitted
        assert published.waiting == len(self.present) - admitted
        assert published.remaining == sum(entry.remaining for entry in self.present.values())
        assert published.clock == self.clock


def schedule(seed: int) -> list[Batch]:
    """One random life of an engine: bursts, pauses, aborts at any moment, ids that come back; judged, and drained."""
    random = Random(seed)
    limits = Limits(random.choice((20, 60, 120)), random.choice((4, 20, 10**6)), random.choice((None, None, 1, 3, 6)))
    ledger = Ledger(random.choice(tuple(Policy)), limits, random.choice(AGEINGS), random.choice((0, 10, 100)))
    ids = [f"r{number}" for number in range(random.randint(2, 12))]
    for _ in range(random.randint(1, 12)):
        _visit(random, ledger, ids)
        batch = ledger.begin()
        if random.random() < 0.2:
            _visit(random, ledger, ids)
        ledger.end(batch)
    ledger.drain()
    return ledger.history


def _visit(random: Random, ledger: Ledger, ids: list[str]) -> None:
    """What clients do between two calls of the loop."""
    if random.random() < 0.15:
        ledger.abort(random.choice(ids))
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        ledger.add(_work(random, random.choice(ids)))


def _work(random: Random, id_: str) -> Work:
    first, second = random.randint(1, 30), random.randint(1, 60)
    steps = (first,) * random.randint(1, 5) + (second,) * random.choice((0, 0, 1, 2))
    return Work(id_, steps, random.randint(0, 5), random.choice((0, 0, 0, -1, 1, 2)))


SIZES = {1024: 80, 4096: 15, 9216: 5}
"""Tokens of 512², 1024² and 1536² images in percent: the mixed load of the benchmarks."""

STEPS = 28
BUDGET = 4096
"""Tokens of a step: a large image goes alone, four small ones together."""


def responses(policy: Policy, seed: int, images: int, ageing: float = 0.1, load: float = 0.9) -> dict[int, list[int]]:
    """Serve a Poisson stream of mixed sizes; for each size the clock from arrival to the last step, in tokens."""
    random = Random(seed)
    mean = STEPS * sum(size * share for size, share in SIZES.items()) / sum(SIZES.values())
    scheduler = Scheduler(policy, Limits(BUDGET, images), ageing, 0)
    coming, due = [], 0.0
    for number in range(images):
        due += random.expovariate(load / mean)
        size = random.choices(tuple(SIZES), tuple(SIZES.values()))[0]
        coming.append((due, Work(str(number), (size,) * STEPS, 1)))
    coming.reverse()
    arrived: dict[str, int] = {}
    took: dict[int, list[int]] = {size: [] for size in SIZES}
    sizes = {work.id: work.steps[0] for _, work in coming}
    idle = 0.0
    while coming or scheduler.remaining:
        if not scheduler.remaining:
            idle = max(idle, coming[-1][0] - scheduler.clock)
        while coming and coming[-1][0] <= scheduler.clock + idle:
            _, work = coming.pop()
            scheduler.add(work)
            arrived[work.id] = scheduler.clock
        for id_ in scheduler.advance(scheduler.batch()):
            took[sizes[id_]].append(scheduler.clock - arrived[id_])
    return took
