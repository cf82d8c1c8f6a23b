"""Health, readiness, and figures that any number of tasks make no longer."""

import re

import pytest

from hidream.errors import StoreUnavailable
from hidream.store import predictions, workers
from hidream.store.predictions import Step
from hidream.store.workers import Worker

WORKER = Worker("host:1", ["wavespeed-ai/hidream-i1-dev"], "v1")


async def figures_of(api, headers=None):
    answer = await api.client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    lines = [line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_ready_means_that_somebody_draws(with_api):
    async def scenario(api):
        assert (await api.client.get("/healthz")).json()["data"] == {"status": "ok"}
        answer = await api.client.get("/readyz")
        assert (answer.status_code, "no worker" in answer.json()["message"]) == (503, True)
        await workers.register(api.database, WORKER)
        answer = await api.client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json()["data"] == {
            "status": "ready", "workers": 1, "models": list(WORKER.models), "versions": ["v1"]
        }  # fmt: skip
        api.database.changes.stop()
        answer = await api.client.get("/readyz")
        assert (answer.status_code, answer.json()["message"]) == (503, "this process is stopping")

    with_api(scenario)


def test_not_ready_says_that_the_database_is_away(with_api, monkeypatch):
    async def scenario(api):
        async def away(*_):
            raise StoreUnavailable("the database does not answer: gone")

        monkeypatch.setattr(workers, "ready", away)
        answer = await api.client.get("/readyz")
        assert (answer.status_code, answer.json()["message"]) == (503, "the database does not answer: gone")
        assert (await api.client.get("/healthz")).status_code == 200

    with_api(scenario)


def test_figures_of_tasks(with_api):
    async def scenario(api):
        await api.service.metrics.begin()
        await workers.register(api.database, WORKER)
        for size in ("512*512", "512*512", "1536*1024"):
            await api.submit(prompt="a house", size=size)
        task = await api.claim()
        await predictions.report(api.database, "host:1", {(task.id, task.attempt): Step(28, 28)})
        assert await predictions.complete(api.database, task, [False], 1500)
        await api.fail(1405, "no")
        dev = 'model="wavespeed-ai/hidream-i1-dev"'
        for _ in range(2):  # asking changes nothing
            found = await figures_of(api)
            assert found[f'hidream_queue_tasks{{{dev},size="larger",status="created"}}'] == 1
            assert found[f'hidream_queue_tasks{{{dev},size="512",status="created"}}'] == 0
            assert found[f'hidream_tasks_total{{code="0",{dev},status="completed"}}'] == 1
            assert found[f'hidream_tasks_total{{code="1405",{dev},status="failed"}}'] == 1
            assert found[f"hidream_steps_total{{{dev}}}"] == 28
            assert found[f'hidream_task_inference_seconds_sum{{{dev},size="512"}}'] == 1.5
            assert found[f'hidream_task_seconds_count{{{dev},size="512"}}'] == 2
            assert found[f'hidream_task_waiting_seconds_count{{{dev},size="512"}}'] == 2
            assert found[f"hidream_workers{{{dev}}}"] == 1
            assert found["hidream_webhooks_owed"] == 0

    with_api(scenario)


def test_no_label_comes_from_a_client(with_api):
    async def scenario(api):
        for i in range(20):
            await api.submit(prompt=f"house {i}")
            await api.get(f"/api/v3/predictions/{i}")
            await api.client.get(f"/nothing/{i}")
            await api.client.request(f"ODD{i}", "/healthz")
        await figures_of(api)
        before = await figures_of(api)
        for i in range(100, 140):
            await api.submit(prompt=f"house {i}", size=f"{512 + i}*512")
            await api.get(f"/api/v3/predictions/{i}")
            await api.client.get(f"/nothing/{i}")
            await api.client.request(f"ODD{i}", "/healthz")
        after = await figures_of(api)
        assert after.keys() == before.keys()
        assert after['hidream_http_requests_total{method="GET",route="none",status="404"}'] == 60
        assert not [name for name in after if re.search(r"ODD|nothing|/\d", name)]

    with_api(scenario)


def test_who_may_read_figures(with_api):
    async def admin_only(api):
        assert (await api.client.get("/metrics")).status_code == 401
        assert (await api.get("/metrics")).status_code == 403
        await figures_of(api, await api.key("admin"))

    with_api(admin_only, metrics="admin")

    async def nobody(api):
        answer = await api.client.get("/metrics")
        assert (answer.status_code, "switched /metrics off" in answer.json()["message"]) == (404, True)

    with_api(nobody, metrics="off")


@pytest.mark.parametrize("result", ["delivered", "failed", "given_up"])
def test_figures_of_webhooks(with_api, result):
    async def scenario(api):
        api.service.metrics.webhook(result, 0.2)
        found = await figures_of(api)
        assert found[f'hidream_webhook_attempts_total{{result="{result}"}}'] == 1
        assert found["hidream_webhook_seconds_sum"] == 0.2

    with_api(scenario)
