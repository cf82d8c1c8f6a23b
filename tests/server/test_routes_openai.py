"""OpenAI's images API: its parameters, responses and errors."""

import asyncio
import base64
import json

import httpx
import pytest
from served import served

from hidream.types import ImageFormat, Sampler, Size

FULL = "wavespeed-ai/hidream-i1-full"


async def ask(api, headers=None, **body):
    return await api.client.post("/v1/images/generations", json=body, headers=api.bearer | (headers or {}))


async def drawn(api, **body):
    answer = asyncio.create_task(ask(api, **body))
    task = await api.draw(b"the image")
    return task, await asyncio.wait_for(answer, 10)


async def test_urls_by_default(api):
    task, answer = await drawn(api, prompt="a house", n=2)
    assert answer.status_code == 200
    body = answer.json()
    assert body["created"] == task.created_ms // 1000
    assert list(body) == ["created", "data"]
    assert body["data"] == [{"url": f"http://test/outputs/{name}"} for name in task.output_names]
    assert (task.input.num_images, task.input.output_format, task.input.size) == (
        2,
        ImageFormat.PNG,
        Size(1024, 1024),
    )


async def test_base64_and_extras(api):
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
    assert base64.b64decode(datum["b64_json"]) == b"the image"
    asked = task.input
    assert (task.model, asked.size, asked.seed, asked.steps) == (FULL, Size(512, 768), 7, 9)
    assert asked.negative_prompt == "fog"


@pytest.mark.parametrize("model", [None, "hidream-i1-dev", "wavespeed-ai/hidream-i1-dev"])
async def test_a_model_by_its_short_name_or_none(api, model):
    task, answer = await drawn(api, prompt="a house", model=model, size="auto")
    assert (answer.status_code, task.model) == (200, "wavespeed-ai/hidream-i1-dev")


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"prompt": ""}, 400, "prompt", None),
        ({}, 400, "prompt", None),
        ({"prompt": "a", "n": 5}, 400, "n", None),
        ({"prompt": "a", "n": "2"}, 400, "n", None),
        ({"prompt": "a", "steps": 0}, 400, "steps", None),
        ({"prompt": "a", "size": "1792x2049"}, 400, "size", None),
        ({"prompt": "a", "size": 5}, 400, "size", None),
        ({"prompt": "a", "response_format": "png"}, 400, "response_format", None),
        ({"prompt": "a", "model": "dall-e-3"}, 404, None, "model_not_found"),
    ],
)
async def test_errors_have_their_form(api, body, status, param, code):
    answer = await ask(api, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert list(answer.json()) == ["error"]
    assert set(error) == {"message", "type", "param", "code"}


async def test_errors_of_the_framework_and_of_keys_too(api):
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


async def test_a_refused_prompt_is_a_content_policy_violation(api):
    answer = await ask(api, prompt="naked child")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "content_policy_violation")
    assert "naked" not in error["message"]


@pytest.mark.parametrize(("code", "status"), [(1405, 500), (1401, 400), (1400, 400), (5000, 500)])
async def test_a_failed_task_is_an_error_that_is_not_repeated(api, code, status):
    answer = asyncio.create_task(ask(api, prompt="a"))
    await api.fail(code, "no paint")
    answer = await asyncio.wait_for(answer, 10)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, "no paint")
    assert answer.headers["x-should-retry"] == "false"


async def test_what_takes_too_long_is_cancelled(open_api):
    async with open_api(sync_timeout_s=0.05) as api:
        answer = await ask(api, prompt="a")
        assert (answer.status_code, answer.json()["error"]["type"]) == (504, "server_error")
        assert "no worker that serves wavespeed-ai/hidream-i1-dev was seen" in answer.json()["error"]["message"]
        assert await api.claim() is None


async def test_what_takes_too_long_and_can_be_asked_for_again_goes_on(open_api):
    async with open_api(sync_timeout_s=0.05) as api:
        headers = {"Idempotency-Key": "one"}
        answer = await ask(api, headers, prompt="a")
        assert answer.status_code == 504
        assert "continues: repeat it with its Idempotency-Key" in answer.json()["error"]["message"]
        await api.draw(b"the image")
        again = await ask(api, headers, prompt="a")
        assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")


async def test_v3s_parameters_are_used_by_their_own_names(api):
    said = {"width": 640, "height": 512, "num_inference_steps": 3, "sampler": "euler", "num_images": 2}
    task, answer = await drawn(api, prompt="a", model=FULL, guidance_scale=2.5, output_format="webp", **said)
    assert list(answer.json()) == ["created", "data"]
    asked = task.input
    assert (asked.size, asked.steps, asked.num_images) == (Size(640, 512), 3, 2)
    assert (asked.sampler, asked.guidance, asked.output_format) == (Sampler.EULER, 2.5, ImageFormat.WEBP)
    task, answer = await drawn(api, prompt="a", size="auto", aspect_ratio="16:9", enable_base64_output=True)
    assert (list(answer.json()["data"][0]), task.input.size) == (["b64_json"], Size(1360, 768))
    task, _ = await drawn(api, prompt="a", output_format="jpeg", output_compression=60, size="1792x1024")
    assert (task.input.output_quality, task.input.size) == (60, Size(1792, 1024))


@pytest.mark.parametrize(
    "said",
    [
        {"n": 2, "num_images": 3},
        {"steps": 2, "num_inference_steps": 3},
        {"output_compression": 50, "output_quality": 60},
        {"size": "512x512", "width": 640},
        {"size": "512x512", "height": 640, "width": 512},
        {"response_format": "url", "enable_base64_output": True},
    ],
)
async def test_two_names_for_one_thing_must_agree(api, said):
    answer = await ask(api, prompt="a", **said)
    error = answer.json()["error"]
    first, *_ = said
    second = next(name for name in reversed(said) if f" {name} is" in error["message"])
    assert (answer.status_code, error["param"], second != first) == (400, first, True)
    equal = dict(zip(said, ["512x512", 512, 512] if "size" in said else [2] * 2, strict=False))
    if "response_format" not in said:
        _, answer = await drawn(api, prompt="a", **equal, output_format="webp")
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("name", "value", "nothing", "instead"),
    [
        ("stream", True, False, "/events"),
        ("partial_images", 2, 0, "/events"),
        ("image", "aGVsbG8=", "", "/api/v3/"),
        ("mask", "aGVsbG8=", None, "/api/v3/"),
        ("webhook", "https://receiver.example", "", "/api/v3/"),
        ("webhook_url", "https://receiver.example", "", "/api/v3/"),
        ("enable_sync_mode", False, True, "/api/v3/"),
        ("background", "transparent", "opaque", "auto, opaque"),
        ("output_format", "gif", "png", "png, jpeg"),
        ("svg", {"model": "a"}, None, "png"),
    ],
)
async def test_what_this_route_cannot_do_is_refused_by_name(api, name, value, nothing, instead):
    answer = await ask(api, prompt="a", **{name: value})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, name)
    assert instead in error["message"]
    assert await api.claim() is None
    _, answer = await drawn(api, prompt="a", **{name: nothing})
    assert list(answer.json()) == ["created", "data"]


@pytest.mark.parametrize(
    ("limits", "body", "param"),
    [
        ({"steps_max": 5}, {"steps": 9}, "num_inference_steps"),
        ({"pixels_max": 256 * 256}, {"size": "512x512"}, "size"),
        ({"images_max": 1}, {"n": 2}, "num_images"),
        ({}, {"loras": [{"name": "ink", "scale": 11}]}, "loras"),
        ({}, {"target_size": {"width": 512}}, "target_size"),
        ({}, {"prompt": "seed is what a tree begins as", "size": [1]}, "size"),
    ],
)
async def test_errors_carry_their_parameter(api, limits, body, param):
    answer = await ask(api, await api.key(**limits), **{"prompt": "a"} | body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (403 if limits else 400, param)


async def test_a_failed_tasks_error_is_no_longer_taken_for_a_parameters_name(api):
    answer = asyncio.create_task(ask(api, prompt="a"))
    await api.fail(1405, "size of the world is too small for it")
    error = (await asyncio.wait_for(answer, 10)).json()["error"]
    assert (error["param"], error["message"]) == (None, "size of the world is too small for it")


async def test_what_has_no_effect_is_told_beside_the_images(api):
    ours = {"quality": "hd", "style": "vivid", "user": "me", "moderation": "low"}
    other = {"output_compression": 90, "seeed": 7, "guidance_scale": 5}
    answer = asyncio.create_task(ask(api, prompt="a", background="auto", **ours, **other))
    await api.draw(warnings=["the prompt is too long"])
    warnings = (await answer).json()["warnings"]
    assert {warning.partition(" ")[0] for warning in warnings[:-1]} == {*ours, *other}
    assert warnings[-1] == "the prompt is too long"
    harmless = {"quality": "auto", "moderation": "auto", "background": "opaque", "user": None, "stream": False}
    _, answer = await drawn(api, prompt="a", **harmless)
    assert "warnings" not in answer.json()


async def test_what_would_be_refused_is_not_suggested(api):
    _, answer = await drawn(api, prompt="a house", images=["x"], input_image="x", seeed=1)
    told = answer.json()["warnings"]
    assert [each.partition("; did you mean")[2] for each in told] == ["", "", " seed?"]


async def test_a_webhook_in_the_url_is_refused_too(api):
    url = "/v1/images/generations?webhook=http://example.com"
    answer = await api.client.post(url, json={"prompt": "a house"}, headers=api.bearer)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "webhook")


async def tasks(api):
    return (await api.post("/api/v3/predictions")).json()["data"]["items"]


async def status_is(api, status):
    async with asyncio.timeout(10):
        while [task["status"] for task in await tasks(api)] != [status]:
            await asyncio.sleep(0.01)


async def connected(client, api, path, headers="", **body):
    """Send a request on a connection of one's own."""
    url, data = httpx.URL(str(client.base_url)), json.dumps({"prompt": "a"} | body)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {api.secret}\r\n{headers}"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n{data}".encode())
    return reader, writer


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_client_that_hangs_up_cancels_its_task(open_api, claimed, caplog):
    with caplog.at_level("INFO", "hidream.server.access_log"):
        async with open_api() as api, served(api) as client:
            _, writer = await connected(client, api, "/v1/images/generations")
            await status_is(api, "created")
            if claimed:
                await api.claim()
            writer.close()
            await status_is(api, "cancelled")
    assert "route=/v1/images/generations status=499" in caplog.text


async def test_a_task_that_can_be_asked_for_again_survives_its_client(api):
    async with served(api) as client:
        for path, headers, body in (
            ("/v1/images/generations", "Idempotency-Key: once\r\n", {}),
            ("/api/v3/wavespeed-ai/hidream-i1-dev", "", {"enable_sync_mode": True}),
        ):
            _, writer = await connected(client, api, path, headers, **body)
            await status_is(api, "created")
            writer.close()
            await asyncio.sleep(0.2)
            (task,) = await tasks(api)
            assert task["status"] == "created"
            await api.draw()
            await status_is(api, "completed")
            if headers:
                answer = await ask(api, {"Idempotency-Key": "once"}, prompt="a")
                assert answer.json()["data"][0]["url"] == (await tasks(api))[0]["outputs"][0]
            await api.delete(f"/api/v3/predictions/{task['id']}")


async def test_requests_behind_it_on_the_same_connection_are_answered(api):
    async with served(api) as client:
        reader, writer = await connected(client, api, "/v1/images/generations")
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        await api.draw()
        text = (await asyncio.wait_for(reader.read(), 10)).decode()
        assert text.count("HTTP/1.1 200 OK") == 2
        assert text.index("/outputs/") < text.index('"ok"')
        writer.close()


async def test_a_server_that_stops_leaves_the_task_alone(api):
    answer = asyncio.create_task(ask(api, prompt="a"))
    await status_is(api, "created")
    api.database.changes.stop()
    answer = await asyncio.wait_for(answer, 10)
    (task,) = await tasks(api)
    assert (answer.status_code, task["status"]) == (503, "created")
    assert task["id"] in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


async def test_an_idempotency_key_draws_once(api):
    key = {"Idempotency-Key": "a"}
    answers = [asyncio.create_task(ask(api, key, prompt="a house")) for _ in range(5)]
    await api.draw()
    urls = {answer.json()["data"][0]["url"] for answer in await asyncio.gather(*answers)}
    assert len(urls) == 1
    assert await api.claim() is None


async def test_models(api):
    listed = (await api.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert {model["id"] for model in listed["data"]} == set(api.service.models)
    for model in listed["data"]:
        assert (model["object"], model["created"], model["owned_by"]) == ("model", 1_743_984_000, "wavespeed-ai")
        for name in (model["id"], model["id"].partition("/")[2]):
            assert (await api.get(f"/v1/models/{name}")).json() == model
