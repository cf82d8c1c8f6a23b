"""The audit log: every act on a key, in the same transaction, without secrets and names."""

import asyncio

import pytest
from store_calls import new_key

from hidream.errors import NotFound
from hidream.store import audit_log, keys
from hidream.store.keys import Limits, Scope

YEAR_S = 365 * 86_400


async def told(database, **which):
    return [(act.act, act.actor, act.subject, act.details) for act in await audit_log.entries(database, **which)]


async def test_each_act_says_who_did_what_to_which_key(database, clock):
    key, secret = await keys.create(database, "Ada's", (Scope.READ,), Limits(tasks_max=3), actor="ada@home")
    clock.now += 1
    fresh = await keys.rotate(database, key.id, actor="bob@home")
    clock.now += 1
    await keys.revoke(database, key.id, actor="bob@home")
    clock.now += 1
    for _ in range(2):  # known from then on
        await keys.register(database, "HIDREAM_API_KEY", "hd_chosen", actor="hidream serve")
    other = (await keys.list_keys(database))[-1]
    assert await told(database) == [
        ("keys create", "ada@home", key.id, {"scopes": ["read"], "limits": {"tasks_max": 3}}),
        ("keys rotate", "bob@home", key.id, {}),
        ("keys revoke", "bob@home", key.id, {}),
        ("keys register", "hidream serve", other.id, {"scopes": ["admin"], "limits": {}}),
    ]
    for private in (secret, fresh, "Ada", "hd_chosen"):
        assert private not in str(await told(database))
    assert len(await told(database, subject=other.id)) == 1
    assert len(await told(database, since_ms=database.now_ms())) == 1


async def test_what_was_not_done_is_not_told(database, clock):
    for act in (keys.revoke, keys.rotate):
        with pytest.raises(NotFound):
            await act(database, "nobody")
    key = await new_key(database)
    clock.now += 1
    assert await keys.delete_unused(database, key.id)
    assert not await keys.delete_unused(database, key.id)
    assert [(act, actor) for act, actor, *_ in await told(database)] == [
        ("keys create", audit_log.SYSTEM),
        ("keys take back", audit_log.SYSTEM),
    ]


async def test_an_act_and_its_note_are_one(monkeypatch, database):
    key, secret = await keys.create(database, "mine")

    async def broken(*_, **__):
        raise asyncio.CancelledError

    monkeypatch.setattr(audit_log, "record", broken)
    with pytest.raises(asyncio.CancelledError):
        await keys.revoke(database, key.id)
    assert await keys.find(database, secret) == key


async def test_acts_are_kept_for_a_year(database, clock):
    await new_key(database)
    clock.now += YEAR_S
    assert await audit_log.purge(database) == 0
    await new_key(database)
    clock.now += 0.001
    assert await audit_log.purge(database) == 1
    assert len(await audit_log.entries(database)) == 1
