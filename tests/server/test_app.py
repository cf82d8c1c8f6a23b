"""The application: all errors in one format, and a process that stays small."""

import subprocess
import sys

import pytest

from hidream.errors import DatabaseUnavailable


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nothing/here", 404),
        ("GET", "/docs", 404),
        ("GET", "/api/v9/predictions/x", 404),
        ("POST", "/api/v3/other-vendor/model", 404),
        ("GET", "/healthz/", 404),
        ("GET", "/api/v3/wavespeed-ai/hidream-i1-dev", 405),
        ("DELETE", "/healthz", 405),
        ("OPTIONS", "/api/v3/predictions/x/result", 405),
    ],
)
async def test_the_frameworks_own_errors_have_the_same_shape(api, method, path, status):
    answer = await api.client.request(method, path, headers=api.bearer)
    assert answer.status_code == status
    body = answer.json()
    assert body == {"code": status, "message": body["message"], "data": None, "error": body["message"]}
    if status == 405:
        assert answer.headers["allow"] in body["message"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/v3/predictions/" + "0" * 32, "DELETE, GET, HEAD"),
        ("/uploads/x", "GET, HEAD, PUT"),
        ("/api/v3/predictions", "POST"),
    ],
)
async def test_all_methods_of_a_path_are_named(api, path, allowed):
    answer = await api.client.patch(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_what_nobody_has_foreseen_is_a_500_that_tells_nothing_but_its_id(open_api, caplog):
    async with open_api() as api:
        api.service.models["wavespeed-ai/broken"] = None  # a variant that is none
        answer = await api.submit(model="wavespeed-ai/broken", prompt="a house", headers={"X-Request-ID": "mine"})
        assert (answer.status_code, answer.json()["code"]) == (500, 500)
        assert "NoneType" not in answer.text
        assert answer.headers.get_list("x-request-id") == ["mine"]
        assert answer.json()["message"].endswith("the request mine")
    assert "request_failed request=mine error=" in caplog.text


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/api/v3/balance", "/v1/models", "/nothing"]
)
async def test_head_answers_as_get_does_without_its_body(api, path):
    got, asked = [await api.client.request(method, path, headers=api.bearer) for method in ("GET", "HEAD")]
    assert asked.status_code == got.status_code
    assert asked.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":  # which tells of the request before
        assert asked.headers["content-length"] == got.headers["content-length"]


async def test_head_of_events_ends(api):
    task = (await api.submit(prompt="a house")).json()["data"]["id"]
    path = f"/api/v3/predictions/{task}/events"
    answer = await api.client.head(path, headers=api.bearer)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


async def test_a_file_that_cannot_be_read_is_a_503_that_tells_no_path(api):
    submitted = (await api.submit("v2", prompt="a house")).json()["data"]
    task = await api.draw()
    path = api.settings.home / "outputs" / task.output_name
    path.unlink()
    path.mkdir()  # a folder where a file should be
    answer = await api.get(submitted["urls"]["get"])
    assert (answer.status_code, answer.json()["code"]) == (503, 503)
    assert task.output_name not in answer.text


async def test_a_database_that_is_away_is_a_503_that_says_when_to_come_back(monkeypatch, api):
    def away(*_, **__):
        raise DatabaseUnavailable("the database does not answer: away")

    monkeypatch.setattr(api.database, "write", away)
    for answer in (await api.submit(prompt="a"), await api.post("/v1/images/generations", prompt="a")):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_no_page_may_call_unless_its_origin_is_set(api):
    answer = await api.client.get("/healthz", headers={"Origin": "https://app.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [("https://a.example, https://app.example", True), ("*", True), ("https://a.example", False)],
)
async def test_pages_of_set_origins_may_call(open_api, origins, allowed):
    async with open_api(cors_origins=origins) as api:
        asking = {
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
        }
        answer = await api.client.options("/api/v3/wavespeed-ai/hidream-i1-dev", headers=asking)
        assert (answer.status_code == 200) == allowed
        assert (answer.headers.get("access-control-allow-origin") in ("https://app.example", "*")) == allowed
        answer = await api.client.options(
            "/api/v3/balance", headers=asking | {"Access-Control-Request-Method": "PATCH"}
        )
        assert answer.status_code == 400, "a method that no route has"
        answer = await api.client.get("/api/v3/balance", headers=api.bearer | {"Origin": "https://app.example"})
        assert answer.status_code == 200, "it is the browser that keeps the answer from the page"
        assert (answer.headers.get("access-control-allow-origin") in ("https://app.example", "*")) == allowed
        exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert {"retry-after", "ratelimit-remaining", "idempotent-replayed"} <= exposed


@pytest.mark.integration
def test_the_api_process_has_neither_torch_nor_the_model():
    code = """
import sys
import hidream.server.serve
heavy = {"torch", "transformers", "diffusers", "onnxruntime", "hidream.model", "hidream.worker"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
