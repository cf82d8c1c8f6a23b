"""Tasks over HTTP: every field as documented, and who may see what."""

import asyncio
import base64
import json
import re
from datetime import datetime

import pytest

from hidream.errors import DatabaseUnavailable
from hidream.request import LoraUse
from hidream.server.queue_status import TTL_S
from hidream.store import history, keys, predictions, workers
from hidream.store.keys import Scope
from hidream.store.workers import Worker
from hidream.types import Size, Status

MODEL = "wavespeed-ai/hidream-i1-dev"
FULL = "wavespeed-ai/hidream-i1-full"
CREATED = {
    "model": MODEL,
    "outputs": [],
    "has_nsfw_contents": [],
    "status": "created",
    "error": "",
    "executionTime": 0,
    "timings": {"inference": 0},
    "seed": 7,
    "version": "",
}


@pytest.mark.parametrize("api_name", ["v2", "v3"])
async def test_a_submission_is_answered_field_for_field(api, api_name):
    answer = await api.submit(api_name, prompt="a house", seed=7)
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["code", "message", "data"]
    assert (body["code"], body["message"]) == (200, "success")
    data = body["data"]
    assert re.fullmatch("[0-9a-f]{32}", data["id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", data["created_at"])
    assert datetime.fromisoformat(data["created_at"]).utcoffset() is not None
    url = f"http://test/api/{api_name}/predictions/{data['id']}/result"
    assert {name: data[name] for name in data if name not in ("id", "created_at", "queue")} == CREATED | {
        "urls": {"get": url}
    }
    result = (await api.get(url)).json()
    assert result == body


async def test_ids_are_shared_by_the_versions_and_both_paths(api):
    submitted = (await api.submit("v3", prompt="a house")).json()["data"]
    for version in ("v2", "v3"):
        for path in ("", "/result"):
            data = (await api.get(f"/api/{version}/predictions/{submitted['id']}{path}")).json()["data"]
            assert data["urls"]["get"] == f"http://test/api/{version}/predictions/{submitted['id']}/result"
            assert data | {"urls": None} == submitted | {"urls": None}


async def test_a_finished_image_as_base64_and_as_a_url(api):
    answers = [(await api.submit(version, prompt="a house")).json()["data"] for version in ("v2", "v3")]
    for _ in answers:
        await api.draw(b"the image", has_nsfw=True)
    inline, linked = [(await api.get(data["urls"]["get"])).json()["data"] for data in answers]
    assert [base64.b64decode(output, validate=True) for output in inline["outputs"]] == [b"the image"]
    for data in (inline, linked):
        assert (data["status"], data["has_nsfw_contents"]) == ("completed", [True])
        assert (data["timings"], data["version"]) == ({"inference": 1234}, "v1")
        assert data["executionTime"] >= 0
        assert "code" not in data
    assert re.fullmatch(r"http://test/outputs/[A-Za-z0-9_-]{43}\.jpeg", linked["outputs"][0])


async def test_warnings_are_told_by_both_versions_and_only_if_there_are_any(api):
    for warnings in ((), ("the prompt is too long",)):
        submitted = (await api.submit(prompt="a house")).json()["data"]
        assert "warnings" not in submitted
        await api.draw(warnings=warnings)
        for version in ("v2", "v3"):
            data = (await api.get(f"/api/{version}/predictions/{submitted['id']}/result")).json()["data"]
            assert data.get("warnings", []) == list(warnings)
            assert ("warnings" in data) == bool(warnings)


async def test_what_has_no_effect_is_told_from_the_first_answer_on(api):
    told = ["seeed is not a parameter of /api/v3 and was ignored; did you mean seed?"]
    data = (await api.submit(prompt="a house", seeed=7)).json()["data"]
    assert (data["status"], data["warnings"]) == ("created", told)
    assert (await api.get(data["urls"]["get"])).json()["data"]["warnings"] == told
    await api.draw(warnings=["the prompt is too long"])
    done = (await api.get(data["urls"]["get"])).json()["data"]
    assert (done["status"], done["warnings"]) == ("completed", [*told, "the prompt is too long"])
    listed = (await api.post("/api/v3/predictions")).json()["data"]
    assert (listed["items"][0]["warnings"], "warnings" in listed) == (done["warnings"], False)

    key = {"Idempotency-Key": "once"}
    first, again = [(await api.submit(headers=key, prompt="a house", seeed=7)).json()["data"] for _ in "12"]
    assert first == again
    assert (await api.submit(headers=key, prompt="a house")).status_code == 409

    data = (await api.submit("v2", query="?webook=x", prompt="a house", image="x")).json()["data"]
    assert [warning.partition(" ")[0] for warning in data["warnings"]] == ["image", "webook"]


async def test_a_list_and_a_result_say_what_they_do_not_know(api):
    id_ = (await api.submit(prompt="a house", seeed=7)).json()["data"]["id"]
    listed = (await api.post("/api/v3/predictions?page=2", page_sise=3)).json()["data"]
    assert [warning.partition(" ")[0] for warning in listed["warnings"]] == ["page_sise", "page"]
    assert listed["warnings"][0].endswith("did you mean page_size?")
    result = (await api.get(f"/api/v3/predictions/{id_}?wait=1")).json()["data"]
    assert [warning.partition(" ")[0] for warning in result["warnings"]] == ["seeed", "wait"]


async def test_how_to_draw_may_be_said_on_v3(api):
    how = {"num_inference_steps": 3, "shift": 2.5, "sampler": "euler", "loras": [{"path": "ink"}]}
    for version, expected in (("v2", (None, None, None, ())), ("v3", (3, 2.5, "euler", (LoraUse("ink"),)))):
        assert (await api.submit(version, prompt="a house", guidance_scale=3.5, **how)).status_code == 200
        asked = (await api.claim()).input
        assert (asked.steps, asked.shift, asked.sampler, asked.loras) == expected
        assert asked.guidance is None


async def test_a_failed_task_is_a_200(api):
    submitted = (await api.submit(prompt="a house")).json()["data"]
    await api.fail(1405, "no paint")
    answer = await api.get(submitted["urls"]["get"])
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert (data["status"], data["error"], data["code"]) == ("failed", "no paint", 1405)
    assert (data["outputs"], data["has_nsfw_contents"]) == ([], [])


async def test_a_refused_prompt_is_a_task_that_failed(api):
    for sync in (False, True):
        data = (await api.submit(prompt="naked child", enable_safety_checker=False, enable_sync_mode=sync)).json()[
            "data"
        ]
        assert (data["status"], data["code"], data["outputs"]) == ("failed", 1200, [])
        assert data["error"]
        assert (await api.get(data["urls"]["get"])).json()["data"] == data
    assert await api.claim() is None


async def test_sync_mode_answers_with_the_image(api):
    answer = asyncio.create_task(api.submit(prompt="a house", enable_sync_mode=True))
    await api.draw()
    data = (await answer).json()["data"]
    assert (data["status"], len(data["outputs"])) == ("completed", 1)


async def test_sync_mode_that_takes_too_long_says_how_to_go_on(open_api):
    async with open_api(sync_timeout_s=0.05) as api:
        answer = await api.submit(prompt="a house", enable_sync_mode=True)
        assert answer.status_code == 200
        assert "error" not in answer.json()
        data = answer.json()["data"]
        assert (data["status"], data["code"]) == ("processing", 5004)
        assert data["error"] == (
            "Sync mode timed out after 0.05 seconds. The prediction is still processing asynchronously."
        )
        later = (await api.get(data["urls"]["get"])).json()["data"]
        assert (later["status"], later["error"]) == ("created", "")


async def test_a_long_poll_ends_with_the_image(api):
    url = (await api.submit(prompt="a house")).json()["data"]["urls"]["get"]
    assert (await api.get(f"{url}?wait_s=0.05")).json()["data"]["status"] == "created"
    polling = asyncio.create_task(api.get(f"{url}?wait_s=30"))
    await api.draw()
    assert (await asyncio.wait_for(polling, 20)).json()["data"]["status"] == "completed"


@pytest.mark.parametrize("wait_s", ["-1", "61", "soon", "nan", ""])
async def test_a_wait_that_is_not_accepted_is_a_422(api, wait_s):
    url = (await api.submit(prompt="a house")).json()["data"]["urls"]["get"]
    answer = await api.get(f"{url}?wait_s={wait_s}")
    assert (answer.status_code, answer.json()["code"]) == (422, 422)
    assert f"wait_s is '{wait_s}'" in answer.json()["message"]


async def test_another_keys_prediction_is_not_there(api):
    url = (await api.submit(prompt="a house")).json()["data"]["urls"]["get"]
    _, other = await keys.create(api.database, "other")
    for path in (url, "/api/v3/predictions/" + "0" * 32):
        answer = await api.client.get(path, headers={"Authorization": f"Bearer {other}"})
        assert (answer.status_code, answer.json()["code"]) == (404, 404)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer x{}", "Bearer {}x", "Bearer hd_\xe9"]
)
async def test_without_a_known_key_it_is_a_401_before_anything_is_read(api, header):
    headers = {} if header is None else {"Authorization": header.format(api.secret).encode("latin-1")}
    for answer in (
        await api.client.post("/api/v3/wavespeed-ai/hidream-i1-dev", content=b"{broken", headers=headers),
        await api.client.get("/api/v2/predictions/x/result", headers=headers),
    ):
        assert (answer.status_code, answer.json()["code"]) == (401, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert api.secret not in answer.text


async def test_a_revoked_key_is_a_401(api):
    assert (await api.submit(prompt="a house")).status_code == 200
    (key,) = await keys.list_keys(api.database)
    await keys.revoke(api.database, key.id)
    await asyncio.sleep(1)  # key_cache.TTL_S
    assert (await api.submit(prompt="a house")).status_code == 401


async def test_a_full_queue_is_a_429_that_says_when_to_come_back(open_api):
    async with open_api(queue_max=1) as api:
        assert (await api.submit(prompt="a house")).status_code == 200
        answer = await api.submit(prompt="a house")
        assert (answer.status_code, answer.json()["code"]) == (429, 429)
        assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("name", ["hidream-i1-huge", "z-image/turbo", ""])
async def test_an_unknown_model_is_a_404_that_lists_what_there_is(api, name):
    answer = await api.client.post(f"/api/v3/wavespeed-ai/{name}", json={"prompt": "a"}, headers=api.bearer)
    assert answer.status_code == 404
    assert "there are: wavespeed-ai/hidream-i1-dev" in answer.json()["message"]


@pytest.mark.parametrize("name", ["hidream-i1-fast", "hidream-i1-dev"])
async def test_a_known_model_that_is_not_served_is_a_404_too(api, name, tmp_path):
    api.service.models.pop(f"wavespeed-ai/{name}", None)
    answer = await api.submit(model=f"wavespeed-ai/{name}", prompt="a")
    assert answer.status_code == 404
    assert answer.json()["message"].endswith(f"there are: {', '.join(api.service.models)}")
    assert (await api.submit(model=FULL, prompt="a")).status_code == 200


async def test_several_images_have_a_url_and_a_flag_each(api):
    for api_name, count in (("v3", 3), ("v2", 1)):
        data = (await api.submit(api_name, prompt="a house", num_images=3)).json()["data"]
        await api.draw()
        done = (await api.get(data["urls"]["get"])).json()["data"]
        assert len(set(done["outputs"])) == len(done["has_nsfw_contents"]) == count


async def test_base64_of_several_images(api):
    data = (await api.submit(prompt="a", num_images=2, enable_base64_output=True)).json()["data"]
    await api.draw(b"bytes")
    done = (await api.get(data["urls"]["get"])).json()["data"]
    assert [base64.b64decode(output) for output in done["outputs"]] == [b"bytes"] * 2


async def test_the_place_in_the_queue_is_told_while_a_task_waits(api):
    now = 0.0
    api.service.queue_status._clock = lambda: now  # the longer a look at the line takes, the longer it is good enough
    urls = [(await api.submit(prompt="a house")).json()["data"]["urls"]["get"] for _ in range(3)]
    queues = [(await api.get(url)).json()["data"].get("queue") for url in urls]
    assert [queue["position"] for queue in queues] == [1, 2, 3]
    await api.draw()
    await api.claim()
    now += TTL_S
    first, second, third = [(await api.get(url)).json()["data"] for url in urls]
    assert "queue" not in first
    assert (second["status"], "queue" in second) == ("processing", False)
    assert third["queue"]["position"] == 1


async def test_a_task_that_nobody_serves_says_so_while_it_waits(open_api):
    async with open_api(sync_timeout_s=0) as api:
        now = 0.0
        api.service.worker_counts._clock = lambda: now
        api.service.queue_status._clock = lambda: now
        await workers.register(api.database, Worker("host:1", [MODEL], "v1"))
        nobody = f"no worker that serves {FULL} was seen in the last 15 seconds; the task waits until one comes"
        lonely = {"position": 1, "estimated_seconds": None, "workers": 0, "reason": nobody}
        for version in ("v2", "v3"):
            data = (await api.submit(version, model=FULL, prompt="a house")).json()["data"]
            assert (data["status"], data["queue"]) == ("created", lonely)
            assert (await api.get(data["urls"]["get"])).json()["data"]["queue"] == lonely
            assert (await api.delete(f"/api/v3/predictions/{data['id']}")).status_code == 200
            now += TTL_S  # until then it still counts
        synchronous = (await api.submit(model=FULL, prompt="a house", enable_sync_mode=True)).json()["data"]
        assert (synchronous["code"], synchronous["queue"]) == (5004, lonely)
        served = (await api.submit(prompt="a house")).json()["data"]
        assert "queue" not in served, "a submission does not pay for a look at the line"
        served = (await api.get(served["urls"]["get"])).json()["data"]["queue"]
        assert (served["workers"], served["estimated_seconds"]) == (1, None)
        assert served["reason"] == f"no image of {MODEL} was finished in the last 10 minutes"

        await workers.register(api.database, Worker("host:2", [FULL, MODEL], "v1"))
        now += TTL_S
        url = synchronous["urls"]["get"]
        assert (await api.get(url)).json()["data"]["queue"]["workers"] == 1
        assert "queue" not in (await api.draw() and (await api.get(url)).json()["data"])


async def test_an_estimate_has_no_reason_and_is_none_once_nobody_serves_the_model(api):
    now = 0.0
    api.service.worker_counts._clock = lambda: now
    await workers.register(api.database, Worker("host:1", [MODEL], "v1"))
    await api.submit(prompt="a house")
    waiting = (await api.submit(prompt="a house")).json()["data"]["urls"]["get"]
    await asyncio.sleep(0.01)
    await api.draw()
    queue = (await api.get(waiting)).json()["data"]["queue"]
    assert (queue["workers"], queue["reason"]) == (1, None)
    assert queue["estimated_seconds"] >= 0
    await workers.deregister(api.database, "host:1")
    now += TTL_S
    queue = (await api.get(waiting)).json()["data"]["queue"]
    assert (queue["workers"], queue["estimated_seconds"]) == (0, None)


async def test_a_database_that_goes_away_behind_the_commit_makes_no_error_of_a_submission(monkeypatch, api):
    async def away(*_):
        raise DatabaseUnavailable("the database does not answer: gone")

    monkeypatch.setattr(workers, "ready", away)
    answer = await api.submit(prompt="a house")
    assert (answer.status_code, "queue" in answer.json()["data"]) == (200, False)


# --- webhooks at submission ---


HOOK = "https://receiver.example/hook"


@pytest.mark.parametrize(
    ("query", "body"),
    [
        (f"?webhook={HOOK}", {}),
        ("", {"webhook": HOOK}),
        ("", {"webhook_url": HOOK}),
        ("", {"webhook": "", "webhook_url": HOOK}),
    ],
)
@pytest.mark.parametrize("api_name", ["v2", "v3"])
async def test_a_webhook_by_query_or_body(api, query, body, api_name):
    answer = await api.submit(api_name, query, prompt="a house", **body)
    assert answer.status_code == 200
    task = await api.claim()
    assert (task.webhook, task.base_url) == (HOOK, "http://test")
    assert not task.input.enable_base64_output, "v2's default gives way"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"webhook": "http://127.0.0.1:80/"}, "webhook is 'http://127.0.0.1:80/'"),
        ({"webhook": "ftp://receiver.example"}, "webhook is 'ftp://receiver.example'"),
        ({"webhook": "nonsense"}, "webhook is 'nonsense'"),
        ({"webhook_url": 5}, "webhook is 5"),
        ({"webhook": {"url": HOOK}}, "webhook is {"),
        ({"webhook": "http://user:secret@receiver.example/"}, "webhook has a user name"),
        ({"webhook": HOOK, "enable_sync_mode": True}, "enable_sync_mode is True beside a webhook"),
        (
            {"webhook": HOOK, "enable_base64_output": True},
            "webhook callback does not support base64 output, please use the normal API to use base64 output",
        ),
    ],
)
async def test_a_webhook_that_is_not_accepted_is_a_400(api, body, message):
    answer = await api.submit(prompt="a house", **body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(message)
    assert "secret" not in answer.text
    assert await api.claim() is None


async def test_an_inner_webhook_that_the_operator_allows(open_api):
    async with open_api(allowed="127.0.0.0/8, hooks.inner") as api:
        assert (await api.submit(prompt="a house", webhook="http://127.0.0.1:9/")).status_code == 200


# --- idempotency ---


async def test_64_equal_posts_at_once_over_two_servers_make_one_task(open_apis):
    async with open_apis(2) as (one, two):
        key = {"Idempotency-Key": "order 1"}
        posts = [(one, two)[i % 2].submit(prompt="a house", headers=key) for i in range(64)]
        answers = await asyncio.gather(*posts)
        assert [answer.status_code for answer in answers] == [200] * 64
        assert len({answer.json()["data"]["id"] for answer in answers}) == 1
        fresh = [answer for answer in answers if "idempotent-replayed" not in answer.headers]
        assert len(fresh) == 1
        assert all(answer.headers["idempotent-replayed"] == "true" for answer in answers if answer is not fresh[0])
        assert len([task for task in [await one.claim(), await two.claim()] if task]) == 1


async def test_an_idempotency_key_with_another_request_is_a_409(api):
    key = {"Idempotency-Key": "order 1"}
    first = await api.submit(prompt="a house", seed=1, headers=key)
    for other in (
        api.submit(prompt="a horse", seed=1, headers=key),
        api.submit("v2", prompt="a house", seed=1, headers=key),
        api.submit(prompt="a house", seed=1, model=FULL, headers=key),
        api.submit("v3", f"?webhook={HOOK}", prompt="a house", seed=1, headers=key),
    ):
        answer = await other
        assert (answer.status_code, answer.json()["code"]) == (409, 409)
        assert "order 1" in answer.json()["message"]
    swapped = b' {"seed":1,"prompt":"a house"} '
    headers = api.bearer | key | {"Content-Type": "application/json"}
    again = await api.client.post(f"/api/v3/{MODEL}", content=swapped, headers=headers)
    assert again.json()["data"]["id"] == first.json()["data"]["id"]
    other_key = await api.client.post(f"/api/v3/{MODEL}", json={"prompt": "x"}, headers=await api.key() | key)
    assert other_key.status_code == 200


@pytest.mark.parametrize("text", ["", "x" * 256, "a\tb", "caf\xe9"])
async def test_an_idempotency_key_that_is_not_accepted_is_a_400(api, text):
    headers = {"Idempotency-Key": text.encode("latin-1")}
    answer = await api.submit(prompt="a house", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("Idempotency-Key is ")


async def test_a_request_that_was_not_taken_in_may_come_again(api):
    key = {"Idempotency-Key": "k" * 255}
    assert (await api.submit(prompt="a", seed=-2, headers=key)).status_code == 400
    assert (await api.submit(prompt="a", headers=key)).status_code == 200


# --- list, cancel, delete ---


async def test_the_list_has_the_newest_first_and_filters(api):
    await api.submit("v2", prompt="first", seed=1, output_format="webp")
    await api.draw()
    await asyncio.sleep(0.005)
    await api.submit(prompt="second", model=FULL, negative_prompt="fog")
    await asyncio.sleep(0.005)
    await api.client.post(f"/api/v3/{MODEL}", json={"prompt": "not mine"}, headers=await api.key())

    data = (await api.post("/api/v3/predictions", page=1, page_size=20, include_inputs=True)).json()["data"]
    assert (data["page"], data["page_size"], data["total"]) == (1, 20, 2)
    newest, oldest = data["items"]
    assert (newest["input"]["prompt"], newest["input"]["negative_prompt"]) == ("second", "fog")
    assert oldest["input"]["size"] == "1024*1024"
    assert oldest["outputs"][0].startswith("http://test/outputs/"), "URLs, although v2 asked for base64"

    async def found(**asked):
        return [item["id"] for item in (await api.post("/api/v3/predictions", **asked)).json()["data"]["items"]]

    both = [newest["id"], oldest["id"]]
    assert await found() == both
    assert await found(page_size=1, page=2) == both[1:]
    assert await found(page=3) == []
    assert await found(model=FULL) == both[:1]
    assert await found(model="nobody/else") == []
    assert await found(status="completed") == both[1:]
    assert await found(status="", model=None) == both
    assert await found(created_before=oldest["created_at"]) == both[1:]
    assert await found(created_after=newest["created_at"]) == both[:1]
    assert await found(created_after="2020-01-01T00:00:00Z", created_before="2020-01-02T00:00:00Z") == []
    assert "input" not in (await api.post("/api/v3/predictions")).json()["data"]["items"][0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("page", 0),
        ("page", "1"),
        ("page", 10**30),
        ("page_size", 101),
        ("page_size", 2.5),
        ("created_after", "yesterday"),
        ("created_after", 5),
        ("created_before", "2026-13-01T00:00:00Z"),
        ("created_before", []),
        ("status", "deleted"),
        ("status", "pending"),
        ("status", {}),
        ("model", 5),
        ("include_inputs", "yes"),
    ],
)
async def test_a_list_that_is_not_accepted_is_a_400_that_names_it(api, name, value):
    answer = await api.post("/api/v3/predictions", **{name: value})
    assert answer.status_code == 400
    assert answer.json()["message"].startswith(f"{name} is ")
    assert "accepted" in answer.json()["message"]


async def test_an_unfinished_task_is_cancelled_and_a_finished_one_deleted(api):
    waiting = (await api.submit(prompt="a")).json()["data"]
    path = f"/api/v3/predictions/{waiting['id']}"
    assert (await api.delete(path)).json()["data"] == {"id": waiting["id"], "status": "cancelled"}
    assert (await api.get(path)).json()["data"]["status"] == "cancelled"
    assert await api.claim() is None
    assert (await api.delete(path)).json()["data"] == {"id": waiting["id"], "status": "deleted"}
    for answer in (await api.get(path), await api.delete(path)):
        assert (answer.status_code, answer.json()["code"]) == (404, 404)

    drawn = (await api.submit(prompt="a")).json()["data"]["id"]
    task = await api.claim()
    assert (await api.delete(f"/api/v2/predictions/{drawn}")).json()["data"]["status"] == "cancelled"
    assert not await predictions.complete(api.database, task, [False], 1)


async def test_a_task_is_cancelled_unless_it_is_finished(api):
    id_ = (await api.submit(prompt="a")).json()["data"]["id"]
    for _ in range(2):
        answer = await api.post(f"/api/v3/predictions/{id_}/cancel")
        assert (answer.status_code, answer.json()["data"]["status"]) == (200, "cancelled")
    assert await api.claim() is None
    await api.submit(prompt="a")
    done = (await api.draw()).id
    before = (await api.get(f"/api/v2/predictions/{done}")).json()["data"]
    assert (await api.post(f"/api/v2/predictions/{done}/cancel")).json()["data"] == before
    assert before["status"] == "completed"
    assert (await api.client.get(before["outputs"][0])).status_code == 200
    for nothing in (
        await api.post(f"/api/v3/predictions/{'0' * 32}/cancel"),
        await api.post("/api/v3/predictions/x/cancel"),
    ):
        assert (nothing.status_code, nothing.json()["code"]) == (404, 404)


async def test_a_task_that_finishes_while_it_is_cancelled_is_one_of_the_two_and_never_deleted(api):
    for _ in range(20):
        id_ = (await api.submit(prompt="a")).json()["data"]["id"]
        task = await api.claim()
        completed, answer = await asyncio.gather(
            predictions.complete(api.database, task, [False], 1), api.post(f"/api/v3/predictions/{id_}/cancel")
        )
        status = "completed" if completed else "cancelled"
        assert answer.json()["data"]["status"] == status
        assert (await api.get(f"/api/v3/predictions/{id_}")).json()["data"]["status"] == status


async def test_another_keys_task_is_neither_cancelled_nor_deleted(api):
    id_ = (await api.submit(prompt="a")).json()["data"]["id"]
    other = await api.key()
    assert (await api.client.delete(f"/api/v3/predictions/{id_}", headers=other)).status_code == 404
    assert (await api.client.post(f"/api/v3/predictions/{id_}/cancel", headers=other)).status_code == 404
    answer = await api.client.post("/api/v3/predictions/delete", json={"ids": [id_]}, headers=other)
    assert answer.json()["data"] == {"deleted_count": 0}
    assert await api.claim() is not None


async def test_many_are_deleted_at_once(api):
    ids = [(await api.submit(prompt="a")).json()["data"]["id"] for _ in range(3)]
    done = (await api.draw()).id
    nonsense = ["0" * 32, "", "\0", "\ud800", "../" + ids[0]]
    content = json.dumps({"ids": [*ids, ids[0], *nonsense]})
    answer = await api.raw("/api/v3/predictions/delete", content)
    assert answer.json()["data"] == {"deleted_count": 3}
    assert (await api.get(f"/api/v3/predictions/{done}")).status_code == 404
    assert await api.claim() is None


@pytest.mark.parametrize("ids", [None, [], "x", [1], ["a"] * 501, {}])
async def test_ids_that_are_not_accepted(api, ids):
    answer = await api.post("/api/v3/predictions/delete", ids=ids)
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("ids is ")


async def test_a_task_that_is_cancelled_ends_the_wait_for_it(api):
    waiting = asyncio.create_task(api.submit(prompt="a", enable_sync_mode=True))
    async with asyncio.timeout(10):
        while (task := await api.claim()) is None:
            await asyncio.sleep(0.01)
    await api.delete(f"/api/v3/predictions/{task.id}")
    data = (await asyncio.wait_for(waiting, 20)).json()["data"]
    assert (data["status"], data["outputs"]) == ("cancelled", [])


# --- keys ---


@pytest.mark.parametrize(
    ("scope", "may_submit", "may_read"),
    [(Scope.SUBMIT, 200, 403), (Scope.VIEW, 403, 200), (Scope.READ, 403, 200), (Scope.ADMIN, 200, 200)],
)
async def test_scopes(api, scope, may_submit, may_read):
    key = await api.key(scope)
    submitted = await api.client.post(f"/api/v3/{MODEL}", json={"prompt": "a"}, headers=key)
    listed = await api.client.post("/api/v3/predictions", json={}, headers=key)
    assert (submitted.status_code, listed.status_code) == (may_submit, may_read)
    for answer, lacking in ((submitted, "submit"), (listed, "view")):
        if answer.status_code == 403:
            assert f"the scope {lacking}" in answer.json()["message"]


async def test_a_key_that_may_only_look_can_change_nothing(api):
    submits = await api.key(Scope.SUBMIT)
    key, secret = await keys.create(api.database, "both", {Scope.SUBMIT, Scope.VIEW})
    viewer = {"Authorization": f"Bearer {secret}"}
    made = (await api.client.post(f"/api/v3/{MODEL}", json={"prompt": "a"}, headers=viewer)).json()["data"]
    path = f"/api/v3/predictions/{made['id']}"
    for url in (path, f"{path}/result", f"{path}/webhooks"):
        assert (await api.client.get(url, headers=viewer)).status_code == 200
    for refused in (
        await api.client.delete(path, headers=viewer),
        await api.client.post(f"{path}/cancel", headers=viewer),
        await api.client.post("/api/v3/predictions/delete", json={"ids": [made["id"]]}, headers=viewer),
        await api.client.get("/api/v3/webhook/secret", headers=viewer),
        await api.client.get(path, headers=submits),
    ):
        assert refused.status_code == 403
    assert "the scope read (it has: submit, view)" in (await api.client.delete(path, headers=viewer)).text
    assert (await history.get(api.database, made["id"], key.id)).status is Status.CREATED


@pytest.mark.parametrize(
    ("limits", "body", "words"),
    [
        ({"steps_max": 20}, {}, "num_inference_steps is 28, the model's own number; accepted from this key: up to 20"),
        ({"pixels_max": 512 * 512}, {}, "size is 1024*1024, 1048576 pixels; accepted from this key: up to 262144"),
        ({"images_max": 1}, {"num_images": 2}, "num_images is 2; accepted from this key: up to 1"),
        ({"work_per_day": 1024 * 1024}, {}, "accepted from this key: up to 1048576 a day"),
    ],
)
async def test_what_a_key_may_never_have_is_a_403_that_is_not_worth_repeating(api, limits, body, words):
    key = await api.key(**limits)
    answer = await api.client.post(f"/api/v3/{MODEL}", json={"prompt": "a"} | body, headers=key)
    assert (answer.status_code, answer.json()["code"]) == (403, 403)
    assert words in answer.json()["message"]
    assert "retry-after" not in answer.headers
    openai = await api.client.post("/v1/images/generations", json={"prompt": "a"} | body, headers=key)
    assert (openai.status_code, openai.json()["error"]["type"]) == (403, "permission_error")


async def test_what_a_refused_task_brings_is_neither_fetched_nor_kept(api, make_image):
    key = await api.key(tasks_max=1, requests_per_minute=2)
    image = base64.b64encode(make_image()).decode()

    async def submit(**body):
        return await api.client.post(f"/api/v3/{MODEL}", json={"prompt": "a", "image": image} | body, headers=key)

    answers = await asyncio.gather(*(submit() for _ in range(30)))
    assert sorted(answer.status_code for answer in answers) == [200] + [429] * 29
    refused = await submit(image="https://127.0.0.1:1/never-asked.png")
    assert (refused.status_code, "unfinished" in refused.json()["message"]) == (429, True)
    stored = [path for path in (api.settings.home / "uploads").rglob("*") if path.is_file()]
    assert len(stored) == 1


async def test_an_image_that_decides_the_size_is_taken_before_the_size_is_judged(api, make_image):
    key = await api.key(pixels_max=300 * 400)
    for size, status in (((300, 400), 200), ((400, 400), 403)):
        image = base64.b64encode(make_image(size=size)).decode()
        body = {"prompt": "a", "image": image}
        answer = await api.client.post(f"/api/v3/{MODEL}", json=body, headers=key)
        assert answer.status_code == status, answer.text


async def test_a_thousand_tasks_of_one_key_leave_the_next_keys_first_one_accepted(open_api):
    async with open_api(queue_max=100) as api:
        answers = await asyncio.gather(*(api.submit(prompt="a house") for _ in range(100)))
        assert sorted(answer.status_code for answer in answers) == [200] * 50 + [429] * 50
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert "50 tasks of this key wait, its share of the queue" in refused.json()["message"]
        late = await api.client.post(f"/api/v3/{MODEL}", json={"prompt": "a"}, headers=await api.key())
        assert late.status_code == 200


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"requests_per_minute": 2}, "2 requests a minute"),
        ({"tasks_max": 2}, "2 tasks of this key are unfinished"),
        ({"pixels_per_day": 2 * 1024 * 1024}, "pixels a day"),
    ],
)
async def test_limits_of_a_key_are_429s_that_say_when_to_come_back_but_not_for_reading(api, limits, words):
    key = await api.key(**limits)

    async def submit():
        return await api.client.post(f"/api/v3/{MODEL}", json={"prompt": "a"}, headers=key)

    url = (await submit()).json()["data"]["urls"]["get"]
    assert (await submit()).status_code == 200
    answer = await submit()
    assert (answer.status_code, answer.json()["code"]) == (429, 429)
    assert words in answer.json()["message"]
    assert int(answer.headers["retry-after"]) >= 1
    for _ in range(50):
        assert (await api.client.get(url, headers=key)).status_code == 200
    assert (await api.submit(prompt="another key's")).status_code == 200


async def test_a_refused_negative_prompt(api):
    body = {"prompt": "a child on a beach", "negative_prompt": "clothes"}
    assert (await api.submit(model=FULL, **body)).json()["data"]["code"] == 1200
    assert (await api.submit(**body)).json()["data"]["status"] == "created", "Dev does not read it"


async def test_all_that_was_asked_reaches_the_worker(api):
    await api.submit(prompt="a", aspect_ratio="16:9", num_images=4, output_quality=80, strength=0.5)
    asked = (await api.claim()).input
    assert (asked.size, asked.num_images, asked.output_quality, asked.strength) == (Size(1360, 768), 4, 80, 0.5)
    total, (known,) = await history.list_predictions(
        api.database, (await keys.list_keys(api.database))[0].id, history.Query()
    )
    assert (total, known.pixels) == (1, 4 * 1360 * 768)


@pytest.mark.parametrize("name", ["%00", "x%00", "%FF%FE", "..%2F..%2Fetc", "%F0%9F%A6%8A", "a" * 5000])
async def test_ids_that_can_be_no_id_are_not_there(api, name):
    for method, path in (
        ("GET", f"/api/v3/predictions/{name}"),
        ("GET", f"/api/v3/predictions/{name}/result"),
        ("DELETE", f"/api/v3/predictions/{name}"),
        ("POST", f"/api/v3/predictions/{name}/cancel"),
        ("GET", f"/api/v3/predictions/{name}/webhooks"),
        ("POST", f"/api/v3/predictions/{'0' * 32}/webhooks/{name}/replay"),
    ):
        assert (await api.client.request(method, path, headers=api.bearer)).status_code in (404, 405)
    for text in ("\0", "\ud800"):
        assert (await api.raw("/api/v3/predictions", json.dumps({"model": text}))).status_code == 400
