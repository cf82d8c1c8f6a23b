"""Health, readiness, and metrics whose size does not depend on the number of tasks."""

import operator
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from hidream.errors import DatabaseUnavailable
from hidream.store import predictions, workers
from hidream.store.workers import Worker
from hidream.types import MODELS, Step

DEV, FULL, FAST = (f"wavespeed-ai/hidream-i1-{variant}" for variant in ("dev", "full", "fast"))
WORKER = Worker("host:1", ["wavespeed-ai/hidream-i1-dev"], "v1")


async def figures_of(api, headers=None):
    answer = await api.client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    lines = [line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


async def test_ready_means_that_somebody_draws(api):
    assert (await api.client.get("/healthz")).json()["data"] == {"status": "ok"}
    answer = await api.client.get("/readyz")
    assert (answer.status_code, "no worker" in answer.json()["message"]) == (503, True)
    await workers.register(api.database, WORKER)
    answer = await api.client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["data"] == {
        "status": "degraded",
        "workers": 1,
        "models": list(WORKER.models),
        "versions": ["v1"],
        "by_model": {
            DEV: {"ready": True, "workers": 1},
            FULL: {"ready": False, "workers": 0},
            FAST: {"ready": False, "workers": 0},
        },
    }
    await workers.register(api.database, Worker("host:2", list(MODELS), "v2"))
    data = (await api.client.get("/readyz")).json()["data"]
    assert (data["status"], data["workers"], data["versions"]) == ("ready", 2, ["v1", "v2"])
    assert [each["workers"] for each in data["by_model"].values()] == [2, 1, 1]
    api.database.changes.stop()
    answer = await api.client.get("/readyz")
    assert (answer.status_code, answer.json()["message"]) == (503, "this process is stopping")


async def test_a_model_without_workers_is_not_ready_though_others_are(api):
    assert (await api.client.get("/readyz?model=hidream-i1-dev")).status_code == 503
    await workers.register(api.database, WORKER)
    for name, status in ((DEV, 200), ("hidream-i1-dev", 200), (FULL, 503), ("hidream-i1-fast", 503)):
        answer = await api.client.get("/readyz", params={"model": name})
        assert answer.status_code == status, name
        if status == 503:
            assert answer.json()["message"] == (
                f"no worker that serves wavespeed-ai/{name.removeprefix('wavespeed-ai/')} was seen in the last "
                f"15 seconds; those that were seen serve {DEV}"
            )
    answer = await api.client.get("/readyz", params={"model": [DEV, FULL]})
    assert (answer.status_code, f"that serves {FULL} was" in answer.json()["message"]) == (503, True)
    for name in ("flux", ""):
        answer = await api.client.get("/readyz", params={"model": name})
        assert (answer.status_code, f"there is no model {name!r}" in answer.json()["message"]) == (404, True)


async def test_a_misspelt_probe_is_not_green_for_ever(api):
    answer = await api.client.get("/readyz?modle=hidream-i1-full")
    assert answer.status_code == 400
    assert "'modle' is not a parameter of /readyz; accepted: model" in answer.json()["message"]


async def test_workers_for_what_is_not_offered_make_nothing_ready(api):
    del api.service.models[DEV]
    await workers.register(api.database, WORKER)
    answer = await api.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["message"].startswith(f"no worker that serves {FULL} or {FAST} was seen")


async def test_not_ready_says_that_the_database_is_away(monkeypatch, api):
    async def away(*_):
        raise DatabaseUnavailable("the database does not answer: gone")

    monkeypatch.setattr(workers, "ready", away)
    answer = await api.client.get("/readyz")
    assert (answer.status_code, answer.json()["message"]) == (503, "the database does not answer: gone")
    assert (await api.client.get("/healthz")).status_code == 200


async def test_figures_of_tasks(api):
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


async def series_of(api):
    """What Prometheus scrapes: the values of each series by their labels."""
    text = (await api.client.get("/metrics")).text
    series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series.setdefault(sample.name, []).append((sample.labels, sample.value))
    return series


def alarmed(expression, series):
    """The label sets for which an alert of the form `max by (L) (NAME) OP NUMBER and ...` fires."""
    found = []
    for condition in expression.split(" and "):
        parts = re.fullmatch(r"max by \((.+)\) \((\w+)(?:\{(\w+)=\"(\w+)\"\})?\) (==|>|>=) ([\d.]+)", condition.strip())
        by, name, label, wanted, comparison, number = parts.groups()
        largest = {}
        for labels, value in series[name]:
            if label is None or labels[label] == wanted:
                group = tuple((each.strip(), labels[each.strip()]) for each in by.split(","))
                largest[group] = max(value, largest.get(group, value))
        holds = {"==": operator.eq, ">": operator.gt, ">=": operator.ge}[comparison]
        found.append({group for group, value in largest.items() if holds(value, float(number))})
    return set.intersection(*found)


def alert_of_operations(name):
    blocks = re.findall(
        r"^```yaml\n(.*?)^```$",
        (Path(__file__).parents[2] / "docs" / "OPERATIONS.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    documents = [yaml.safe_load(block) for block in blocks]
    rules = [rule for document in documents for group in document.get("groups", []) for rule in group["rules"]]
    (alert,) = [rule for rule in rules if rule["alert"] == name]
    return alert["expr"]


async def test_the_alert_of_the_docs_sees_a_model_that_waits_in_vain(api):
    expression = alert_of_operations("HidreamModelWithoutWorker")

    await workers.register(api.database, WORKER)
    assert alarmed(expression, await series_of(api)) == set(), "nobody asks for the two without workers"
    await api.submit(model=FULL, prompt="a house")
    await api.submit(model=DEV, prompt="a house")
    now = api.database.now_ms()
    api.database.now_ms = lambda: now + 10_000  # lease and alert are both longer
    series = await series_of(api)
    (oldest,) = [value for labels, value in series["hidream_queue_oldest_seconds"] if labels["model"] == FULL]
    assert 10 <= oldest < 60
    assert alarmed(expression, series) == set()
    api.database.now_ms = lambda: now + 70_000
    await workers.heartbeat(api.database, WORKER.id)
    assert alarmed(expression, await series_of(api)) == {(("model", FULL),)}
    await workers.register(api.database, Worker("host:2", [FULL], "v"))
    assert alarmed(expression, await series_of(api)) == set()
    while await api.claim():
        pass
    oldest = {value for _, value in (await series_of(api))["hidream_queue_oldest_seconds"]}
    assert oldest == {0.0}, "what is drawn does not wait"


async def test_no_label_comes_from_a_client(api):
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


async def test_who_may_read_figures(open_api):
    async with open_api(metrics="admin") as api:
        assert (await api.client.get("/metrics")).status_code == 401
        assert (await api.get("/metrics")).status_code == 403
        await figures_of(api, await api.key("admin"))

    async with open_api(metrics="off") as api:
        answer = await api.client.get("/metrics")
        assert (answer.status_code, "switched /metrics off" in answer.json()["message"]) == (404, True)


@pytest.mark.parametrize("result", ["delivered", "failed", "given_up"])
async def test_figures_of_webhooks(api, result):
    api.service.metrics.webhook(result, 0.2)
    found = await figures_of(api)
    assert found[f'hidream_webhook_attempts_total{{result="{result}"}}'] == 1
    assert found["hidream_webhook_seconds_sum"] == 0.2
