"""The routes: field for field what the documents say, and who may see what."""

import asyncio
import base64
import re
from datetime import datetime

import pytest

from hidream.store import keys, predictions, workers
from hidream.store.workers import Worker
from hidream.types import LoraUse, Mode

MODEL = "wavespeed-ai/hidream-i1-dev"
VERSIONS = dict.fromkeys(Mode, "v1")
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
def test_a_submission_is_answered_field_for_field(with_api, api_name):
    async def scenario(api):
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
        assert {name: data[name] for name in data if name not in ("id", "created_at")} == CREATED | {
            "urls": {"get": url}
        }
        assert (await api.get(url)).json() == body

    with_api(scenario)


def test_ids_are_shared_by_the_versions_and_both_paths(with_api):
    async def scenario(api):
        submitted = (await api.submit("v3", prompt="a house")).json()["data"]
        for version in ("v2", "v3"):
            for path in ("", "/result"):
                data = (await api.get(f"/api/{version}/predictions/{submitted['id']}{path}")).json()["data"]
                assert data["urls"]["get"] == f"http://test/api/{version}/predictions/{submitted['id']}/result"
                assert data | {"urls": None} == submitted | {"urls": None}

    with_api(scenario)


def test_a_finished_picture_as_base64_and_as_a_url(with_api):
    async def scenario(api):
        answers = [(await api.submit(version, prompt="a house")).json()["data"] for version in ("v2", "v3")]
        for _ in answers:
            await api.draw(b"the picture", has_nsfw=True)
        inline, linked = [(await api.get(data["urls"]["get"])).json()["data"] for data in answers]
        assert [base64.b64decode(output, validate=True) for output in inline["outputs"]] == [b"the picture"]
        for data in (inline, linked):
            assert (data["status"], data["has_nsfw_contents"]) == ("completed", [True])
            assert (data["timings"], data["version"]) == ({"inference": 1234}, "v1")
            assert data["executionTime"] >= 0
            assert "code" not in data

        (url,) = linked["outputs"]
        assert re.fullmatch(r"http://test/outputs/[A-Za-z0-9_-]{43}\.jpeg", url)
        file = await api.client.get(url)
        assert (file.status_code, file.content) == (200, b"the picture")
        assert file.headers["content-type"] == "image/jpeg"
        assert "immutable" in file.headers["cache-control"]
        part = await api.client.get(url, headers={"Range": "bytes=4-6"})
        assert (part.status_code, part.content) == (206, b"pic")
        head = await api.client.head(url)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "11")

    with_api(scenario)


def test_warnings_are_told_by_both_versions_and_only_if_there_are_any(with_api):
    async def scenario(api):
        for warnings in ((), ("the prompt is too long",)):
            submitted = (await api.submit(prompt="a house")).json()["data"]
            assert "warnings" not in submitted
            await api.draw(warnings=warnings)
            for version in ("v2", "v3"):
                data = (await api.get(f"/api/{version}/predictions/{submitted['id']}/result")).json()["data"]
                assert data.get("warnings", []) == list(warnings)
                assert ("warnings" in data) == bool(warnings)

    with_api(scenario)


def test_how_to_draw_may_be_said_on_v3(with_api):
    async def scenario(api):
        how = {"num_inference_steps": 3, "shift": 2.5, "sampler": "euler", "loras": [{"path": "ink"}]}
        for version, expected in (("v2", (None, None, None, ())), ("v3", (3, 2.5, "euler", (LoraUse("ink"),)))):
            assert (await api.submit(version, prompt="a house", guidance_scale=3.5, **how)).status_code == 200
            asked = (await predictions.claim(api.database, [MODEL], "w", VERSIONS, 15)).input
            assert (asked.num_inference_steps, asked.shift, asked.sampler, asked.loras) == expected
            assert asked.guidance_scale is None

    with_api(scenario)


def test_a_failed_task_is_a_200(with_api):
    async def scenario(api):
        submitted = (await api.submit(prompt="a house")).json()["data"]
        task = await predictions.claim(api.database, [submitted["model"]], "w", VERSIONS, 15)
        await predictions.fail(api.database, task, 1405, "no paint")
        answer = await api.get(submitted["urls"]["get"])
        assert answer.status_code == 200
        data = answer.json()["data"]
        assert (data["status"], data["error"], data["code"]) == ("failed", "no paint", 1405)
        assert (data["outputs"], data["has_nsfw_contents"]) == ([], [])

    with_api(scenario)


def test_a_refused_prompt_is_a_task_that_failed(with_api):
    async def scenario(api):
        for sync in (False, True):
            data = (await api.submit(prompt="naked child", enable_safety_checker=False, enable_sync_mode=sync)).json()[
                "data"
            ]
            assert (data["status"], data["code"], data["outputs"]) == ("failed", 1200, [])
            assert data["error"]
            assert (await api.get(data["urls"]["get"])).json()["data"] == data
        assert await predictions.claim(api.database, [data["model"]], "w", VERSIONS, 15) is None

    with_api(scenario)


def test_sync_mode_answers_with_the_picture(with_api):
    async def scenario(api):
        answer = asyncio.create_task(api.submit(prompt="a house", enable_sync_mode=True))
        async with asyncio.timeout(10):
            while (task := await predictions.claim(api.database, [MODEL], "w", VERSIONS, 15)) is None:
                await asyncio.sleep(0)
            await predictions.complete(api.database, task, False, 5)
        data = (await answer).json()["data"]
        assert (data["status"], len(data["outputs"])) == ("completed", 1)

    with_api(scenario)


def test_sync_mode_that_takes_too_long_says_how_to_go_on(with_api):
    async def scenario(api):
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

    with_api(scenario, sync_timeout_s=0.05)


def test_a_long_poll_ends_with_the_picture(with_api):
    async def scenario(api):
        url = (await api.submit(prompt="a house")).json()["data"]["urls"]["get"]
        assert (await api.get(f"{url}?wait_s=0.05")).json()["data"]["status"] == "created"
        polling = asyncio.create_task(api.get(f"{url}?wait_s=30"))
        await api.draw()
        assert (await asyncio.wait_for(polling, 5)).json()["data"]["status"] == "completed"

    with_api(scenario)


@pytest.mark.parametrize("wait_s", ["-1", "61", "soon", "nan", ""])
def test_a_wait_that_is_not_accepted_is_a_422(with_api, wait_s):
    async def scenario(api):
        url = (await api.submit(prompt="a house")).json()["data"]["urls"]["get"]
        answer = await api.get(f"{url}?wait_s={wait_s}")
        assert (answer.status_code, answer.json()["code"]) == (422, 422)
        assert f"wait_s is '{wait_s}'" in answer.json()["message"]

    with_api(scenario)


def test_another_keys_prediction_is_not_there(with_api):
    async def scenario(api):
        url = (await api.submit(prompt="a house")).json()["data"]["urls"]["get"]
        _, other = await keys.create(api.database, "other")
        for path in (url, "/api/v3/predictions/" + "0" * 32):
            answer = await api.client.get(path, headers={"Authorization": f"Bearer {other}"})
            assert (answer.status_code, answer.json()["code"]) == (404, 404)

    with_api(scenario)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer x{}", "Bearer {}x", "Bearer hd_\xe9"]
)
def test_without_a_known_key_it_is_a_401_before_anything_is_read(with_api, header):
    async def scenario(api):
        headers = {} if header is None else {"Authorization": header.format(api.secret).encode("latin-1")}
        for answer in (
            await api.client.post("/api/v3/wavespeed-ai/hidream-i1-dev", content=b"{broken", headers=headers),
            await api.client.get("/api/v2/predictions/x/result", headers=headers),
        ):
            assert (answer.status_code, answer.json()["code"]) == (401, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert api.secret not in answer.text

    with_api(scenario)


def test_a_revoked_key_is_a_401(with_api):
    async def scenario(api):
        (key,) = await keys.listed(api.database)
        await keys.revoke(api.database, key.id)
        assert (await api.submit(prompt="a house")).status_code == 401

    with_api(scenario)


def test_a_full_queue_is_a_429_that_says_when_to_come_back(with_api):
    async def scenario(api):
        assert (await api.submit(prompt="a house")).status_code == 200
        answer = await api.submit(prompt="a house")
        assert (answer.status_code, answer.json()["code"]) == (429, 429)
        assert int(answer.headers["retry-after"]) > 0

    with_api(scenario, queue_max=1)


@pytest.mark.parametrize("name", ["hidream-i1-huge", "z-image/turbo", ""])
def test_an_unknown_model_is_a_404_that_lists_what_there_is(with_api, name):
    async def scenario(api):
        answer = await api.client.post(f"/api/v3/wavespeed-ai/{name}", json={"prompt": "a"}, headers=api.bearer)
        assert answer.status_code == 404
        assert "there are: wavespeed-ai/hidream-i1-dev" in answer.json()["message"]

    with_api(scenario)


@pytest.mark.parametrize("path", ["..%2Fhidream.db", "hidream.db", "x" * 43 + ".png", "%2e%2e/hidream.db", "%00.png"])
def test_no_other_file_is_served(with_api, path):
    async def scenario(api):
        answer = await api.client.get(f"/outputs/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, 404)

    with_api(scenario)


def test_ready_once_a_worker_is_seen(with_api):
    async def scenario(api):
        assert (await api.client.get("/healthz")).status_code == 200
        answer = await api.client.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, 503)
        await workers.register(api.database, Worker("host:1", ["m"], "v1"))
        answer = await api.client.get("/readyz")
        assert answer.json()["data"] == {"status": "ready", "workers": 1, "versions": ["v1"]}

    with_api(scenario)
