"""Retrying while a database or a bucket is unavailable: as long as the task is wanted, and no longer."""

import asyncio

import pytest

from hidream.errors import DatabaseUnavailable, Interrupted, ObjectStoreUnavailable, TaskFailed
from hidream.worker import retry
from hidream.worker.retry import PAUSES_S, retry_unavailable


def failing(errors, answer=7):
    """Make a call that raises these one after the other, and then answers."""
    left = list(errors)

    async def call():
        if left:
            raise left.pop(0)
        return answer

    return call, left


async def test_it_tries_again_until_it_is_back(caplog):
    call, left = failing([DatabaseUnavailable("away"), ObjectStoreUnavailable("slow")])
    assert await retry_unavailable(call, asyncio.Event(), "say") == 7
    assert not left
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "what=say tries=2" in caplog.text


async def test_what_is_no_outage_is_raised_at_once():
    call, left = failing([TaskFailed("no"), DatabaseUnavailable("away")])
    with pytest.raises(TaskFailed):
        await retry_unavailable(call, asyncio.Event(), "say")
    assert len(left) == 1


async def test_whoever_gives_up_does_not_wait_for_the_pause(monkeypatch):
    monkeypatch.setattr(retry, "PAUSES_S", (0.01, 3600))

    call, _ = failing([DatabaseUnavailable("away")] * 99)
    aborted = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, aborted.set)
    async with asyncio.timeout(20):
        with pytest.raises(Interrupted, match="say"):
            await retry_unavailable(call, aborted, "say")


async def test_a_call_that_works_counts_although_it_was_given_up():
    call, _ = failing([])
    aborted = asyncio.Event()
    aborted.set()
    assert await retry_unavailable(call, aborted, "say") == 7


async def test_with_an_end_in_sight_the_error_itself_comes_out():
    call, left = failing([DatabaseUnavailable("away")] * 99)
    with pytest.raises(DatabaseUnavailable):
        await retry_unavailable(call, asyncio.Event(), "say", within_s=1.5 * PAUSES_S[0])
    assert 99 - len(left) == 2
