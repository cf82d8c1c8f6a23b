"""The webhook secret: one for each key, and two during a rotation."""

import asyncio

import pytest

from hidream.errors import Conflict, NotFound
from hidream.store import audit_log, keys, webhook_secrets
from hidream.store.webhook_secrets import WebhookSecrets

DAY_MS = 86_400_000


async def test_all_who_ask_for_a_webhook_secret_get_the_same(database):
    key, _ = await keys.create(database, "mine")
    other, _ = await keys.create(database, "other")
    given = await asyncio.gather(*(webhook_secrets.get(database, key.id, f"fresh{i}") for i in range(8)))
    assert len(set(given)) == 1
    assert await webhook_secrets.get(database, key.id, "later") == given[0]
    assert await webhook_secrets.get(database, other.id, "another") == WebhookSecrets("another"), "each key has its own"
    assert await webhook_secrets.get(database, key.id, "later") == given[0]


async def test_two_sign_during_the_overlap_and_the_new_one_after_it(database, clock):
    key, _ = await keys.create(database, "mine")
    await webhook_secrets.get(database, key.id, "old")
    clock.now += 1
    both = WebhookSecrets("old", "new", database.now_ms() + DAY_MS)
    assert await webhook_secrets.rotate(database, key.id, "new", DAY_MS, actor="me@here") == both
    assert await webhook_secrets.get(database, key.id, "later") == both
    with pytest.raises(Conflict, match="rotated already; accepted: after that has ended"):
        await webhook_secrets.rotate(database, key.id, "third", DAY_MS)
    clock.now += 86_400
    assert await webhook_secrets.get(database, key.id, "later") == WebhookSecrets("new")
    assert (await webhook_secrets.rotate(database, key.id, "third", DAY_MS)).secret == "new"
    told = [(act.act, act.actor, act.details) for act in (await audit_log.entries(database, subject=key.id))[1:]]
    assert told[0] == ("keys rotate-webhook", "me@here", {"overlap_s": 86_400})
    assert not {"old", "new"} & set(str(told).split("'"))


async def test_a_rotation_can_be_ended_and_made_at_once(database, clock):
    key, _ = await keys.create(database, "mine")
    assert await webhook_secrets.rotate(database, key.id, "first", DAY_MS) == WebhookSecrets("first")
    assert not await webhook_secrets.retire(database, key.id)
    await webhook_secrets.rotate(database, key.id, "second", DAY_MS)
    assert await webhook_secrets.retire(database, key.id)
    assert await webhook_secrets.get(database, key.id, "later") == WebhookSecrets("second")
    await webhook_secrets.rotate(database, key.id, "third", DAY_MS)
    assert await webhook_secrets.rotate(database, key.id, "fourth", 0) == WebhookSecrets("fourth")
    assert await webhook_secrets.get(database, key.id, "later") == WebhookSecrets("fourth")
    with pytest.raises(NotFound, match="there is no key 'nobody'"):
        await webhook_secrets.rotate(database, "nobody", "x", 0)
    assert not await webhook_secrets.retire(database, "nobody")
    rotations = [act for act in await audit_log.entries(database, subject=key.id) if act.act == "keys rotate-webhook"]
    overlaps_s = sorted(act.details["overlap_s"] for act in rotations)
    assert overlaps_s == [0, 0, 86_400, 86_400], "the first overlaps none, the last was made at once"
