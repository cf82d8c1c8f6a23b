"""OpenAI's images API: their parameters, their answers, their form of error."""

import asyncio
import base64

import pytest

from hidream.types import ImageFormat, Size

FULL = "wavespeed-ai/hidream-i1-full"


async def ask(api, headers=None, **body):
    return await api.client.post("/v1/images/generations", json=body, headers=api.bearer | (headers or {}))


async def drawn(api, **body):
    answer = asyncio.create_task(ask(api, **body))
    task = await api.draw(b"the picture")
    return task, await asyncio.wait_for(answer, 10)


def test_urls_by_default(with_api):
    async def scenario(api):
        ignored = {"quality": "hd", "style": "vivid", "user": "me", "background": "auto", "moderation": "low"}
        task, answer = await drawn(api, prompt="a house", n=2, **ignored)
        assert answer.status_code == 200
        body = answer.json()
        assert body["created"] == task.created_ms // 1000
        assert body["data"] == [{"url": f"http://test/outputs/{name}"} for name in task.output_names]
        assert (task.input.num_images, task.input.output_format, task.input.size) == (
            2,
            ImageFormat.PNG,
            Size(1024, 1024),
        )

    with_api(scenario)


def test_base64_and_extras(with_api):
    async def scenario(api):
        task, answer = await drawn(
            api,
            prompt="a house",
            model=FULL,
            size="512x768",
            response_format="b64_json",
            seed=7,
            steps=9,
            negative_prompt="fog",
        )
        (datum,) = answer.json()["data"]
        assert list(datum) == ["b64_json"]
        assert base64.b64decode(datum["b64_json"]) == b"the picture"
        asked = task.input
        assert (task.model, asked.size, asked.seed, asked.num_inference_steps) == (FULL, Size(512, 768), 7, 9)
        assert asked.negative_prompt == "fog"

    with_api(scenario)


@pytest.mark.parametrize("model", [None, "hidream-i1-dev", "wavespeed-ai/hidream-i1-dev"])
def test_a_model_by_its_short_name_or_none(with_api, model):
    async def scenario(api):
        task, answer = await drawn(api, prompt="a house", model=model, size="auto")
        assert (answer.status_code, task.model) == (200, "wavespeed-ai/hidream-i1-dev")

    with_api(scenario)


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"prompt": ""}, 400, "prompt", None),
        ({}, 400, "prompt", None),
        ({"prompt": "a", "n": 5}, 400, "n", None),
        ({"prompt": "a", "n": "2"}, 400, "n", None),
        ({"prompt": "a", "steps": 0}, 400, "steps", None),
        ({"prompt": "a", "size": "1792x1024"}, 400, "size", None),
        ({"prompt": "a", "size": 5}, 400, "size", None),
        ({"prompt": "a", "response_format": "png"}, 400, "response_format", None),
        ({"prompt": "a", "model": "dall-e-3"}, 404, None, "model_not_found"),
    ],
)
def test_errors_have_their_form(with_api, body, status, param, code):
    async def scenario(api):
        answer = await ask(api, **body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
        assert error["type"] == "invalid_request_error"
        assert list(answer.json()) == ["error"]
        assert set(error) == {"message", "type", "param", "code"}

    with_api(scenario)


def test_errors_of_the_framework_and_of_keys_too(with_api):
    async def scenario(api):
        client = api.client
        cases = (
            (await client.post("/v1/images/generations", json={}), 401, "invalid_api_key"),
            (await client.post("/v1/nothing"), 404, "model_not_found"),
            (await client.get("/v1/images/generations"), 405, None),
            (await client.get("/v1/models/dall-e-3", headers=api.bearer), 404, "model_not_found"),
            (await client.post("/v1/images/generations", content=b"{", headers=api.bearer), 400, None),
        )
        for answer, status, code in cases:
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)

        limited = await api.key(tasks_max=1)
        await client.post("/api/v3/wavespeed-ai/hidream-i1-dev", json={"prompt": "a"}, headers=limited)
        answer = await ask(api, limited, prompt="a")
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(answer.headers["retry-after"]) >= 1

    with_api(scenario)


def test_a_refused_prompt_is_a_content_policy_violation(with_api):
    async def scenario(api):
        answer = await ask(api, prompt="naked child")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "content_policy_violation")
        assert "naked" not in error["message"]

    with_api(scenario)


@pytest.mark.parametrize(("code", "status"), [(1405, 500), (1401, 400), (5000, 500)])
def test_a_failed_task_is_an_error_that_is_not_repeated(with_api, code, status):
    async def scenario(api):
        answer = asyncio.create_task(ask(api, prompt="a"))
        await api.fail(code, "no paint")
        answer = await asyncio.wait_for(answer, 10)
        assert (answer.status_code, answer.json()["error"]["message"]) == (status, "no paint")
        assert answer.headers["x-should-retry"] == "false"

    with_api(scenario)


def test_what_takes_too_long_is_cancelled(with_api):
    async def scenario(api):
        answer = await ask(api, prompt="a")
        assert (answer.status_code, answer.json()["error"]["type"]) == (504, "server_error")
        assert await api.claim() is None

    with_api(scenario, sync_timeout_s=0.05)


def test_an_idempotency_key_draws_once(with_api):
    async def scenario(api):
        key = {"Idempotency-Key": "a"}
        answers = [asyncio.create_task(ask(api, key, prompt="a house")) for _ in range(5)]
        await api.draw()
        urls = {answer.json()["data"][0]["url"] for answer in await asyncio.gather(*answers)}
        assert len(urls) == 1
        assert await api.claim() is None

    with_api(scenario)


def test_models(with_api):
    async def scenario(api):
        listed = (await api.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert {model["id"] for model in listed["data"]} == set(api.service.models)
        for model in listed["data"]:
            for name in (model["id"], model["id"].partition("/")[2]):
                assert (await api.get(f"/v1/models/{name}")).json() == model

    with_api(scenario)
