"""A task's events: sent as they happen, once each, and resumed where a client stopped."""

import asyncio
import base64
import json

import pytest
from served import served, told

from hidream.server.routes import events
from hidream.server.routes.events import EventCursor
from hidream.store import predictions
from hidream.types import Status, Step


async def report(api, task, step, preview=None):
    await predictions.report(api.database, "host:1", {(task.id, task.attempt): Step(step, 28, preview)})


class Reader:
    """Reads a stream of events, one by one."""

    def __init__(self, answer):
        self.text, self.chunks = "", answer.aiter_text()

    async def until(self, name, **said):
        """Read until an event of this name that says this."""
        async with asyncio.timeout(20):
            while not any(n == name and said.items() <= json.loads(data).items() for n, _, data in self.new()):
                self.text += await anext(self.chunks)
        return next(event for event in reversed(told(self.text)) if event[0] == name)

    def new(self):
        whole = self.text[: self.text.rfind("\n\n") + 2]
        return told(whole)

    async def rest(self):
        async with asyncio.timeout(20):
            async for chunk in self.chunks:
                self.text += chunk
        return told(self.text)


def path_of(data, api="v3"):
    return f"/api/{api}/predictions/{data['id']}/events"


async def test_an_image_is_told_from_submission_to_end(api):
    data = (await api.submit(prompt="a house")).json()["data"]
    async with served(api) as client, client.stream("GET", path_of(data)) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["cache-control"] == "no-store, no-transform"
        reader = Reader(answer)
        await reader.until("status", status="created")
        task = await api.claim()
        await reader.until("status", status="processing")
        await report(api, task, 5, b"\xff\xd8 small")
        await reader.until("preview")
        await report(api, task, 9)
        await reader.until("progress", step=9)
        for name in task.output_names:
            await api.service.outputs.write(name, b"image")
        assert await predictions.complete(api.database, task, [False], 7)
        names = [name for name, *_ in await reader.rest()]  # the stream ends by itself
        seen = {name: json.loads(data) for name, _, data in told(reader.text)}
        result = (await client.get(data["urls"]["get"].replace("http://test", ""))).json()["data"]
    assert names == ["status", "status", "progress", "preview", "progress", "status"]
    assert seen["progress"] == {"step": 9, "steps": 28}
    assert seen["preview"]["step"] == 5
    kind, image = seen["preview"]["image"].split(",")
    assert (kind, base64.b64decode(image)) == ("data:image/jpeg;base64", b"\xff\xd8 small")
    assert seen["status"] == result | {k: seen["status"][k] for k in ("outputs", "urls")}
    assert seen["status"]["outputs"][0].endswith(task.output_names[0])
    assert reader.text.startswith("retry: ")


async def test_who_comes_back_is_told_nothing_twice(api):
    data = (await api.submit(prompt="a house")).json()["data"]
    task = await api.claim()
    await report(api, task, 5, b"small")
    async with served(api) as client:
        async with client.stream("GET", path_of(data, "v2")) as answer:
            _, last, _ = await Reader(answer).until("preview")
        await report(api, task, 6)
        async with client.stream("GET", path_of(data), headers={"Last-Event-ID": last}) as answer:
            reader = Reader(answer)
            await reader.until("progress")
            assert [(name, json.loads(data)["step"]) for name, _, data in reader.new()] == [("progress", 6)]
            assert await predictions.fail(api.database, task, 1405, "no")
            ended = (await reader.rest())[-1]
        assert (ended[0], json.loads(ended[2])["error"]) == ("status", "no")
        over = await client.get(path_of(data), headers={"Last-Event-ID": ended[1]})
        assert (over.status_code, over.content) == (204, b"")
        again = told((await client.get(path_of(data))).text)
        assert [name for name, *_ in again] == ["status"]


async def test_two_processes_tell_the_same_with_the_same_ids(open_apis):
    async with open_apis(2) as (one, other):
        data = (await one.submit(prompt="a house")).json()["data"]
        await one.draw()
        answers = [(await api.get(path_of(data))).text for api in (one, other)]
        assert told(answers[0]) == told(answers[1])


async def test_silence_is_broken_by_comments(monkeypatch, open_api):
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)

    async with open_api() as api:
        data = (await api.submit(prompt="a house")).json()["data"]
        async with served(api) as client, client.stream("GET", path_of(data)) as answer:
            text = ""
            async with asyncio.timeout(20):
                async for chunk in answer.aiter_text():
                    text += chunk
                    if text.count(":\n\n") >= 3:
                        break
        assert len(told(text)) == 1


async def test_a_process_that_leaves_ends_its_streams(api):
    data = (await api.submit(prompt="a house")).json()["data"]
    async with served(api) as client, client.stream("GET", path_of(data)) as answer:
        reader = Reader(answer)
        await reader.until("status", status="created")
        api.database.changes.stop()
        assert len(await reader.rest()) == 1


async def test_a_deleted_task_ends_its_streams(api):
    data = (await api.submit(prompt="a house")).json()["data"]
    async with served(api) as client, client.stream("GET", path_of(data)) as answer:
        reader = Reader(answer)
        await reader.until("status", status="created")
        await api.delete(f"/api/v3/predictions/{data['id']}")
        assert [json.loads(text)["status"] for _, _, text in await reader.rest()][:2] == ["created", "cancelled"]


async def test_whose_task_it_is_matters(api):
    data = (await api.submit(prompt="a house")).json()["data"]
    other = await api.key()
    assert (await api.client.get(path_of(data), headers=other)).status_code == 404
    assert (await api.client.get(path_of(data))).status_code == 401
    submits_only = await api.key("submit")
    assert (await api.client.get(path_of(data), headers=submits_only)).status_code == 403
    assert (await api.get("/api/v3/predictions/x/events")).status_code == 404


@pytest.mark.parametrize(
    "id_", ["", "x", "1-created-0", "1-nothing-0-0", "-1-created-0-0", "1-created-0-0\n", "9" * 99]
)
def test_an_id_that_is_not_ours_knows_nothing(id_):
    assert EventCursor.of(id_) == EventCursor()


def test_ids_say_what_is_known():
    known = EventCursor(2, Status.PROCESSING, 5, 3)
    assert EventCursor.of(str(known)) == known
