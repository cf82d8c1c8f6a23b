"""How much a key may read: exact, per key, and stated in the headers of every response."""

import asyncio

import pytest
from served import served

from fakes import Clock
from hidream.errors import TooMany
from hidream.server.limits.rates import RateLimiter, StreamLimiter


def counted(reads, key="a"):
    """Count a request; what its answer's head says."""
    state = {}
    try:
        reads.count(key, state)
    finally:
        counted.said = [int(value) for _, value in state.get("rate", [])]
    return counted.said


def test_a_burst_of_a_minutes_worth_then_as_fast_as_the_bucket_drains():
    clock = Clock(100.0)
    reads = RateLimiter(6, clock)
    assert [counted(reads) for _ in range(6)] == [[6, 6 - i, 10 * i] for i in range(1, 7)]
    with pytest.raises(TooMany, match="6 times a minute") as caught:
        counted(reads)
    assert (caught.value.retry_after_s, counted.said) == (10, [6, 0, 60])
    assert counted(reads, "another") == [6, 5, 10]
    clock.now += 9.5
    with pytest.raises(TooMany) as caught:
        counted(reads)
    assert caught.value.retry_after_s == 1
    clock.now += 0.5
    assert counted(reads) == [6, 0, 60]
    clock.now += 600
    assert counted(reads) == [6, 5, 10]


def test_zero_is_no_limit_and_says_nothing():
    reads = RateLimiter(0)
    assert [counted(reads) for _ in range(1000)] == [[]] * 1000


def test_many_in_a_row_are_exact():
    reads = RateLimiter(30_000, Clock(100.0))
    for _ in range(30_000):
        counted(reads)
    with pytest.raises(TooMany) as caught:
        counted(reads)
    assert caught.value.retry_after_s == 1


def test_streams_are_counted_by_key():
    streams = StreamLimiter(2)
    with streams.slot("a"), streams.slot("b"):
        with streams.slot("a"), pytest.raises(TooMany, match="2 event streams and long polls"), streams.slot("a"):
            pass
        with streams.slot("a"):
            pass
    assert not streams._open


async def test_every_answer_to_a_reader_says_what_is_left_also_a_refusal(open_api):
    async with open_api(reads_per_minute=6) as api:
        made = (await api.submit(prompt="a house")).json()["data"]
        submitted = await api.submit(prompt="a house")
        assert "ratelimit-limit" not in submitted.headers
        answers = [
            await api.get("/api/v3/balance"),
            await api.get(f"/api/v3/predictions/{made['id']}"),
            await api.get("/api/v3/predictions/unknown"),
            await api.post("/api/v3/predictions"),
            await api.delete(f"/api/v3/predictions/{made['id']}"),
            await api.get("/v1/models"),
        ]
        said = [[int(a.headers[f"ratelimit-{name}"]) for name in ("limit", "remaining", "reset")] for a in answers]
        assert [(limit, left) for limit, left, _ in said] == [(6, i) for i in reversed(range(6))]
        assert [reset for *_, reset in said] == [10, 20, 30, 40, 50, 60]
        refused = await api.get("/api/v3/balance")
        assert (refused.status_code, refused.headers["ratelimit-remaining"]) == (429, "0")
        assert 1 <= int(refused.headers["retry-after"]) <= 10
        assert (await api.get("/v1/models")).json()["error"]["code"] == "rate_limit_exceeded"
        assert (await api.submit(prompt="a house")).status_code == 200, "submissions have limits of their own"
        assert (await api.client.get("/api/v3/balance", headers=await api.key())).status_code == 200


async def test_streams_and_long_polls_of_a_key_have_a_number(open_api):
    async with open_api(streams_max=2) as api:
        made = (await api.submit(prompt="a house")).json()["data"]
        path, other = f"/api/v3/predictions/{made['id']}", await api.key()
        async with served(api) as client:
            async with client.stream("GET", f"{path}/events") as one:
                assert one.status_code == 200
                polling = asyncio.create_task(client.get(f"{path}?wait_s=60"))
                while api.service.stream_limiter._open.total() < 2:
                    await asyncio.sleep(0.01)
                for refused in (await client.get(f"{path}/events"), await client.get(f"{path}?wait_s=1")):
                    assert (refused.status_code, refused.json()["code"]) == (429, 429)
                    assert "2 event streams and long polls of this key are open" in refused.json()["message"]
                    assert int(refused.headers["retry-after"]) > 0
                assert (await client.get(path)).status_code == 200, "a result at once is no long poll"
                elsewhere = await client.get(f"{path}?wait_s=1", headers=other)
                assert elsewhere.status_code == 404, "another key has its own"
                await api.draw()
                assert (await polling).json()["data"]["status"] == "completed"
            while api.service.stream_limiter._open:
                await asyncio.sleep(0.01)
            assert (await client.get(f"{path}/events")).status_code == 200


async def test_streams_whose_clients_left_are_open_no_more(open_api):
    async with open_api(streams_max=1) as api:
        made = (await api.submit(prompt="a house")).json()["data"]
        async with served(api) as client:
            for _ in range(3):
                async with client.stream("GET", f"/api/v3/predictions/{made['id']}/events") as answer:
                    assert answer.status_code == 200
                    await anext(answer.aiter_text())
                async with asyncio.timeout(20):
                    while api.service.stream_limiter._open or api.service.revocations._watched:
                        await asyncio.sleep(0.01)
