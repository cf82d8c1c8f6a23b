"""OpenAI's event streams: previews as partial images, the images, and errors in their form."""

import asyncio
import base64
import json
from contextlib import asynccontextmanager

import pytest
from served import served

from hidream.errors import DatabaseUnavailable
from hidream.server import openai_stream
from hidream.store import keys, predictions
from hidream.types import Step

GENERATIONS = "/v1/images/generations"


class Reader:
    """Reads the events of a stream, one by one; comments are counted."""

    def __init__(self, answer):
        self.answer, self.text, self.chunks, self.comments = answer, "", answer.aiter_text(), 0

    async def event(self):
        """The next event's data, whose type is also its name."""
        async with asyncio.timeout(20):
            while True:
                while "\n\n" not in self.text:
                    self.text += await anext(self.chunks)
                block, _, self.text = self.text.partition("\n\n")
                if block.startswith(":"):
                    self.comments += 1
                    continue
                (name, data) = (line.partition(": ")[2] for line in block.split("\n"))
                data = json.loads(data)
                assert data["type"] == name
                return data

    async def rest(self):
        """All events until the stream ends."""
        events = []
        while True:
            try:
                events.append(await self.event())
            except StopAsyncIteration:
                return events


@asynccontextmanager
async def stream(api, path=GENERATIONS, headers=None, **body):
    body = {"prompt": "a hat", "stream": True} | body
    async with served(api) as client, client.stream("POST", path, json=body, headers=headers or {}) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield Reader(answer)


async def claimed(api):
    async with asyncio.timeout(10):
        while (task := await api.claim()) is None:
            await asyncio.sleep(0.005)
    return task


async def report(api, task, step, preview=None):
    await predictions.report(api.database, "host:1", {(task.id, task.attempt): Step(step, 28, preview)})


async def finish(api, task, data=b"the image", warnings=()):
    for name in task.output_names:
        await api.service.outputs.write(name, data)
    assert await predictions.complete(api.database, task, [False] * len(task.output_names), 7, warnings)


async def status_is(api, status):
    async with asyncio.timeout(10):
        while True:
            listed = (await api.post("/api/v3/predictions")).json()["data"]["items"]
            if [task["status"] for task in listed] == [status]:
                return listed[0]
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", ["image_generation", "image_edit"])
async def test_previews_and_then_the_image(api, make_image, name):
    path, image = GENERATIONS, {}
    if name == "image_edit":
        path, image = "/v1/images/edits", {"image": base64.b64encode(make_image(size=(512, 256))).decode()}
    async with stream(
        api, path, partial_images=2, output_format="webp", quality="low", size="512x256", **image
    ) as told:
        assert told.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        task = await claimed(api)
        await report(api, task, 5, b"too early")
        await report(api, task, 10, b"\xff\xd8 first")
        first = await told.event()
        await report(api, task, 12, b"too early again")
        await report(api, task, 20, b"\xff\xd8 second")
        second = await told.event()
        await report(api, task, 25, b"\xff\xd8 third, which is one too many")
        await finish(api, task, warnings=["the prompt is too long"])
        (last,) = await told.rest()
    about = {"background": "opaque", "quality": "low", "size": "512x256"}
    for i, (event, data) in enumerate([(first, b"\xff\xd8 first"), (second, b"\xff\xd8 second")]):
        assert event["type"] == f"{name}.partial_image"
        assert event | about | {"output_format": "jpeg", "partial_image_index": i} == event
        assert base64.b64decode(event["b64_json"]) == data
    assert last["type"] == f"{name}.completed"
    assert last | about | {"output_format": "webp", "warnings": ["the prompt is too long"]} == last
    assert base64.b64decode(last["b64_json"]) == b"the image"
    assert last["usage"]["total_tokens"] == 32 * 16
    assert first["created_at"] <= last["created_at"]


async def test_an_event_for_each_image_and_no_previews_unless_wanted(api):
    async with stream(api, n=3) as told:
        task = await claimed(api)
        await report(api, task, 14, b"preview")
        await finish(api, task)
        assert [event["type"] for event in await told.rest()] == ["image_generation.completed"] * 3


async def test_a_worker_that_dies_interrupts_nothing(api):
    async with stream(api, partial_images=1) as told:
        task = await claimed(api)
        await report(api, task, 10, b"of the first attempt")
        assert await predictions.requeue(api.database, task)
        again = await claimed(api)
        assert (again.id, again.attempt) != (task.id, task.attempt)
        await report(api, again, 14, b"of the second")
        event = await told.event()
        assert (event["partial_image_index"], base64.b64decode(event["b64_json"])) == (0, b"of the second")
        await finish(api, again)
        assert [event["type"] for event in await told.rest()] == ["image_generation.completed"]


async def test_a_database_that_is_away_for_a_while_interrupts_nothing(monkeypatch, api):
    progress, tries = api.service.progress, []

    async def away():
        tries.append(1)
        if len(tries) == 3:
            monkeypatch.undo()
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(openai_stream, "RETRY_S", 0.01)
    monkeypatch.setattr(progress, "_look", away)
    async with stream(api, partial_images=1) as told:
        task = await claimed(api)
        await report(api, task, 14, b"preview")
        assert (await told.event())["type"] == "image_generation.partial_image"
        await finish(api, task)
        assert [event["type"] for event in await told.rest()] == ["image_generation.completed"]
    assert len(tries) == 3


@pytest.mark.parametrize(("code", "kind"), [(1405, "server_error"), (1401, "invalid_request_error")])
async def test_a_failure_is_an_error_event(api, code, kind):
    async with stream(api) as told:
        await api.fail(code, "no paint")
        (event,) = await told.rest()
    assert event == {
        "type": "error",
        "error": {"message": "no paint", "type": kind, "param": None, "code": None},
    }


async def test_a_task_that_another_request_cancels(api):
    async with stream(api) as told:
        task = await status_is(api, "created")
        await api.delete(f"/api/v3/predictions/{task['id']}")
        (event,) = await told.rest()
        assert event["error"]["message"] == "cancelled by its client"


async def test_an_image_whose_file_is_gone(api):
    async with stream(api) as told:
        task = await claimed(api)
        assert await predictions.complete(api.database, task, [False], 7)
        (event,) = await told.rest()
    assert (event["type"], event["error"]["message"]) == ("error", "there is no such file")


async def test_what_is_wrong_before_the_stream_is_a_plain_error(api):
    for body, status, param in (
        ({"prompt": ""}, 400, "prompt"),
        ({"partial_images": 4}, 400, "partial_images"),
        ({"response_format": "url"}, 400, "response_format"),
        ({"enable_base64_output": False}, 400, "enable_base64_output"),
        ({"prompt": "naked child"}, 400, None),
        ({"model": "x"}, 404, "model"),
    ):
        answer = await api.post(GENERATIONS, **{"prompt": "a", "stream": True} | body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("is_claimed", [False, True])
async def test_a_client_that_leaves_cancels_its_task(api, is_claimed):
    async with served(api) as client:
        async with client.stream("POST", GENERATIONS, json={"prompt": "a", "stream": True}) as answer:
            begun = answer.aiter_text()
            await anext(begun)
            if is_claimed:
                await claimed(api)
        await status_is(api, "cancelled")


async def test_a_task_that_can_be_asked_for_again_goes_on(api):
    again = {"Idempotency-Key": "once"}
    async with served(api) as client:
        asked = {"prompt": "a", "stream": True}
        async with client.stream("POST", GENERATIONS, json=asked, headers=again) as answer:
            begun = answer.aiter_text()
            await anext(begun)
        task = await claimed(api)
        await finish(api, task)
        answer = await client.post(GENERATIONS, json=asked, headers=again)
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert '"type": "image_generation.completed"' in answer.text


async def test_a_revoked_key_ends_the_stream_and_the_task(api):
    other = await api.key()
    secret = other["Authorization"].partition(" ")[2]
    key = await keys.find(api.database, secret)
    async with served(api) as client:
        asked = {"prompt": "a", "stream": True}
        async with client.stream("POST", GENERATIONS, json=asked, headers=other) as answer:
            told = Reader(answer)
            task = await claimed(api)
            await keys.revoke(api.database, key.id)
            (event,) = await told.rest()
    assert (event["error"]["code"], event["type"]) == ("invalid_api_key", "error")
    async with asyncio.timeout(10):
        while await predictions.complete(api.database, task, [False], 7):
            raise AssertionError("the task was not cancelled")


async def test_a_server_that_stops_says_where_the_images_will_be(api):
    async with stream(api) as told:
        task = await status_is(api, "created")
        api.database.changes.stop()
        (event,) = await told.rest()
    assert f"GET /api/v3/predictions/{task['id']}" in event["error"]["message"]
    await status_is(api, "created")


async def test_a_stream_counts_as_one(open_api):
    async with open_api(streams_max=1) as api, stream(api):
        answer = await api.post(GENERATIONS, prompt="a", stream=True)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        await status_is(api, "created")  # the second left no task


async def test_silence_is_broken_by_comments(monkeypatch, api):
    monkeypatch.setattr(openai_stream, "HEARTBEAT_S", 0.05)
    async with stream(api) as told:
        async with asyncio.timeout(20):
            while told.text.count(":\n\n") < 3:
                told.text += await anext(told.chunks)
        await finish(api, await claimed(api))
        assert [event["type"] for event in await told.rest()] == ["image_generation.completed"]
