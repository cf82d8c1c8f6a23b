"""The limiter in front of the database: order, fairness, and no work for clients that have disconnected."""

import asyncio
import contextlib
import json

import pytest
from served import served
from starlette.requests import ClientDisconnect, Request

from hidream.errors import TooMany
from hidream.server.limits.concurrency import LARGE_AT_ONCE, PER_KEY, ConcurrencyLimiter
from hidream.store import history, keys


def visitor(here=True):
    """A request whose client is there, or has left."""

    async def receive():
        if here:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


class Looks:
    """Visits that stay inside until they are let go, in the order in which they came in."""

    def __init__(self, limiter):
        self.limiter, self.inside, self.done = limiter, [], []

    def visit(self, key, name, request=None):
        async def look():
            async with self.limiter.slot(key, request):
                leave = asyncio.Event()
                self.inside.append((name, leave))
                await leave.wait()
            self.done.append(name)

        return asyncio.create_task(look())

    @property
    def names(self):
        return [name for name, _ in self.inside]

    async def let_go(self, count=1):
        for _ in range(count):
            self.inside.pop(0)[1].set()
            await settle()


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_so_many_of_a_key_and_so_many_in_all_are_inside_the_keys_in_turn():
    looks = Looks(ConcurrencyLimiter(per_key=2, at_once=3))
    visits = [looks.visit("a", f"a{i}") for i in range(5)]
    await settle()
    assert looks.names == ["a0", "a1"]
    visits += [looks.visit("b", f"b{i}") for i in range(3)]
    visits.append(looks.visit("c", "c0"))
    await settle()
    assert looks.names == ["a0", "a1", "b0"]
    await looks.let_go(2)
    assert looks.names == ["b0", "a2", "b1"]
    await looks.let_go()
    assert looks.names == ["a2", "b1", "c0"]
    while looks.inside:
        await looks.let_go()
    await asyncio.gather(*visits)
    assert sorted(looks.done) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1", "b2", "c0"]
    assert [name for name in looks.done if name[0] == "a"] == [f"a{i}" for i in range(5)]
    assert not looks.limiter._running
    assert not looks.limiter._queues
    assert not looks.limiter._total


async def test_who_has_left_when_his_turn_comes_is_sent_away_and_costs_nobody_a_turn():
    looks = Looks(ConcurrencyLimiter(per_key=1))
    first = looks.visit("a", "first", visitor())
    gone = [looks.visit("a", f"gone{i}", visitor(here=False)) for i in range(1500)]
    last = looks.visit("a", "last", visitor())
    other = looks.visit("b", "other", visitor())
    await settle()
    assert looks.names == ["first", "other"]
    await looks.let_go()
    answers = await asyncio.gather(*gone, return_exceptions=True)
    assert all(isinstance(answer, ClientDisconnect) for answer in answers)
    await settle()
    assert looks.names == ["other", "last"]
    await looks.let_go(2)
    await asyncio.gather(first, last, other)


@pytest.mark.parametrize("called", [False, True])
async def test_who_is_cancelled_in_line_or_just_when_called_leaves_the_gate_as_it_was(called):
    looks = Looks(ConcurrencyLimiter(per_key=1))
    first, second, third = [looks.visit("a", name) for name in "123"]
    await settle()
    if called:
        looks.inside.pop(0)[1].set()
        while looks.limiter._queues and len(looks.limiter._queues["a"]) == 2:
            await asyncio.sleep(0)
    second.cancel()
    await settle()
    if not called:
        await looks.let_go()
    assert looks.names == ["3"]
    await looks.let_go()
    await asyncio.gather(first, third)
    assert second.cancelled()
    assert not looks.limiter._running


async def test_without_a_limit_of_its_own_a_key_leaves_some_for_the_next():
    looks = Looks(ConcurrencyLimiter(None, LARGE_AT_ONCE))
    visits = [looks.visit(key, key) for key in "abcd" for _ in range(40)]
    await settle()
    assert [looks.names.count(key) for key in "abcd"] == [32, 16, 8, 4], "one alone has half of them"
    visits += [looks.visit("e", "e") for _ in range(3)]
    await settle()
    assert looks.names[-2:] == ["e", "e"]
    await looks.let_go(33)
    assert looks.names.count("e") == 3, "and who has the fewest does not wait for those who have more"
    while looks.inside:
        await looks.let_go()
    await asyncio.gather(*visits)
    assert not looks.limiter._running
    assert not looks.limiter._queues


async def test_keys_in_line_take_turns_although_one_came_first_with_many():
    looks = Looks(ConcurrencyLimiter(None, 1))
    visits = [looks.visit(key, key) for key in "aaaaabbc"]
    await settle()
    seen = []
    while looks.inside:
        seen += looks.names
        await looks.let_go()
    await asyncio.gather(*visits)
    assert "".join(seen) == "aabcabaa"


async def test_who_waits_too_long_or_leaves_takes_nothing_with_him():
    limiter = ConcurrencyLimiter(None, 1, 0.01, "the place is full")
    async with limiter.slot("a"):
        for key in "ab":
            with pytest.raises(TooMany, match="the place is full; try again later") as raised:
                async with limiter.slot(key):
                    pass
            assert raised.value.retry_after_s == 5
        leaving = asyncio.create_task(limiter.slot("b").__aenter__())
        await settle()
        leaving.cancel()
        await asyncio.wait([leaving])
        assert not limiter._queues, "nothing is remembered of who has left"
    async with limiter.slot("b"):
        pass


async def test_an_error_inside_ends_a_turn():
    limiter = ConcurrencyLimiter(per_key=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"):
            async with limiter.slot("a"):
                raise ValueError("broken")
    assert not limiter._total


@pytest.mark.parametrize("count", [100, pytest.param(1500, marks=pytest.mark.long)])
async def test_listings_whose_clients_left_cost_no_query_and_hold_up_no_other_key(monkeypatch, count, open_api):
    asked = []
    listed = history.list_predictions

    async def noted(database, key_id, query):
        asked.append(key_id)
        return await listed(database, key_id, query)

    monkeypatch.setattr(history, "list_predictions", noted)

    async with open_api() as api:
        (key,), limiter, other = await keys.list_keys(api.database), api.service.read_limiter, await api.key()
        body = json.dumps({"page_size": 100})
        head = f"Host: x\r\nAuthorization: Bearer {api.secret}\r\nContent-Type: application/json\r\n"
        listing = f"POST /api/v3/predictions HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}"
        async with served(api) as client, asyncio.timeout(120):
            async with contextlib.AsyncExitStack() as inside:
                for _ in range(PER_KEY):
                    await inside.enter_async_context(limiter.slot(key.id))
                for standing in range(100, count + 1, 100):
                    writers = []
                    for _ in range(100):
                        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
                        writer.write(listing.encode())
                        writers.append(writer)
                    while len(limiter._queues.get(key.id, ())) < standing:
                        await asyncio.sleep(0.01)
                    for writer in writers:
                        writer.close()
                assert (await client.get("/api/v3/balance", headers=other)).status_code == 200
                assert (await client.post("/api/v3/predictions", json={}, headers=other)).status_code == 200
            while limiter._queues or limiter._total:
                await asyncio.sleep(0.01)
            assert key.id not in asked
            assert (await client.post("/api/v3/predictions", json={})).status_code == 200
