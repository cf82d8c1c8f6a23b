"""Tasks for a model that no worker serves fail by themselves, in any process."""

import asyncio

from hidream.server.background import loops
from hidream.server.background.unserved import Unserved
from hidream.store import workers
from hidream.store.workers import Worker

DEV, FULL = (f"wavespeed-ai/hidream-i1-{variant}" for variant in ("dev", "full"))


async def test_a_task_that_nobody_serves_fails_within_its_time(open_apis):
    async with open_apis(2, unserved_s=1.0) as apis:
        await workers.register(apis[0].database, Worker("host:1", [DEV], "v1"))
        served, unserved = [(await apis[0].submit(prompt="a", model=model)).json()["data"] for model in (DEV, FULL)]
        running = [asyncio.create_task(loops.run(each.service)) for each in apis]
        data = (await apis[1].get(f"/api/v3/predictions/{unserved['id']}?wait_s=20")).json()["data"]
        assert (data["status"], "no worker that serves its model was seen for 1 seconds" in data["error"]) == (
            "failed",
            True,
        )
        for each in apis:
            each.database.changes.stop()
        await asyncio.gather(*running)
        await workers.heartbeat(apis[0].database, "host:1")
        assert (await apis[0].get(f"/api/v3/predictions/{served['id']}")).status_code == 200


async def test_many_fail_in_turns(monkeypatch, open_api):
    monkeypatch.setattr("hidream.store.predictions.ABANDON_BATCH", 2)

    async with open_api(unserved_s=1.0) as api:
        for _ in range(5):
            await api.submit(prompt="a", model=FULL)
        now = api.database.now_ms()
        api.database.now_ms = lambda: now + 2_000
        assert await Unserved(api.service).once() == 5


async def test_the_operator_may_let_them_wait(open_api):
    async with open_api(unserved_s=0.0) as api:
        task = (await api.submit(prompt="a")).json()["data"]
        running = asyncio.create_task(loops.run(api.service))
        await asyncio.sleep(0.1)
        api.database.changes.stop()
        await running
        assert (await api.get(f"/api/v3/predictions/{task['id']}")).json()["data"]["status"] == "created"
