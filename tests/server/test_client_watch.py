"""Clients that wait for a response and have disconnected, or whose key was revoked or rotated."""

import asyncio
import json
import logging

import pytest
from served import served, told

from hidream.server.client_watch import RevocationWatcher
from hidream.store import history, keys
from hidream.store.database import Database

SOON_S = 2.0
"""For how long a revoked key may still be told something."""


async def own_key(api):
    key, secret = await keys.create(api.database, "own")
    return key, {"Authorization": f"Bearer {secret}"}


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("end", [keys.revoke, keys.rotate])
async def test_a_revoked_or_rotated_keys_streams_polls_and_waits_end(api, end):
    (key, headers), clock = await own_key(api), asyncio.get_running_loop().time
    submission = "/api/v3/wavespeed-ai/hidream-i1-dev"
    async with served(api) as client:
        made = (await client.post(submission, json={"prompt": "a"}, headers=headers)).json()["data"]
        path = f"/api/v3/predictions/{made['id']}"
        waiting = [
            asyncio.create_task(client.get(f"{path}?wait_s=60", headers=headers)),
            asyncio.create_task(
                client.post(submission, json={"prompt": "b", "enable_sync_mode": True}, headers=headers)
            ),
            asyncio.create_task(client.post("/v1/images/generations", json={"prompt": "c"}, headers=headers)),
        ]
        beside = asyncio.create_task(client.get(f"{path}?wait_s=60"))
        async with client.stream("GET", f"{path}/events", headers=headers) as stream:
            await until(lambda: sum(map(len, api.service.revocations._watched.values())) == 4)
            began = clock()
            await end(api.database, key.id)
            text = "".join([chunk async for chunk in stream.aiter_text()])
            answers = await asyncio.gather(*waiting)
            assert clock() - began < SOON_S
        assert [name for name, *_ in told(text)] == ["status"]
        assert [answer.status_code for answer in answers] == [401] * 3
        assert "revoked or rotated" in answers[0].json()["message"]
        assert answers[2].json()["error"]["code"] == "invalid_api_key"
        assert (await beside).status_code == 404
        _, found = await history.list_predictions(api.database, key.id, history.Query())
        assert sorted((task.input.prompt, task.status) for task in found) == [
            ("a", "created"),
            ("b", "created"),
            ("c", "cancelled"),
        ]


async def test_long_polls_and_sync_waits_end_when_their_clients_hang_up_and_the_tasks_go_on(api, caplog):
    with caplog.at_level(logging.INFO, "hidream.server.access_log"):
        async with served(api) as client:
            host, port = client.base_url.host, client.base_url.port
            made = (await client.post("/api/v3/wavespeed-ai/hidream-i1-dev", json={"prompt": "a"})).json()["data"]
            body = json.dumps({"prompt": "b", "enable_sync_mode": True})
            head = f"Host: x\r\nAuthorization: Bearer {api.secret}\r\nContent-Type: application/json\r\n"
            lines = [
                f"GET /api/v3/predictions/{made['id']}?wait_s=60 HTTP/1.1\r\n{head}\r\n",
                f"POST /api/v3/wavespeed-ai/hidream-i1-dev HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}",
            ]
            writers = []
            for line in lines:
                _, writer = await asyncio.open_connection(host, port)
                writer.write(line.encode())
                writers.append(writer)
            await until(lambda: len(api.service.completion_waiter._waiting) == 2)
            for writer in writers:
                writer.close()
            await until(lambda: not api.service.completion_waiter._waiting)
            await until(lambda: caplog.text.count("status=499") == 2)
            listed = (await client.post("/api/v3/predictions", json={})).json()["data"]["items"]
    assert [item["status"] for item in listed] == ["created", "created"]


async def test_keys_that_wait_are_looked_up_together_and_only_after_something_was_written(tmp_path, monkeypatch):
    asked = []
    look = keys.valid_digests

    async def valid(database, digests):
        asked.append(list(digests))
        return await look(database, digests)

    monkeypatch.setattr(keys, "valid_digests", valid)

    async with Database.open(f"sqlite+aiosqlite:///{tmp_path}/hidream.db") as database:
        revocations = RevocationWatcher(database, "salt")
        (one, first), (_, second) = [await keys.create(database, name, pepper="salt") for name in "ab"]
        with revocations.watch(first) as revoked, revocations.watch(second) as other, revocations.watch(first):
            await until(lambda: asked)
            assert [sorted(digests) for digests in asked] == [
                sorted(keys.digest_of(secret, "salt") for secret in (first, second))
            ]
            await asyncio.sleep(0.6)  # two looks' worth
            assert len(asked) == 1
            await keys.revoke(database, one.id)
            await asyncio.wait_for(revoked, SOON_S)
            assert not other.done()
            with revocations.watch(first) as late:
                await asyncio.wait_for(late, SOON_S)
        assert not revocations._watched
        assert first not in repr(vars(revocations))
