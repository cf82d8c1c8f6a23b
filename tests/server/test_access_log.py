"""The access log: a line per request, without anything secret."""

import logging
import re

import pytest


async def test_a_line_says_route_and_status_but_no_secret(open_api, caplog):
    async with open_api() as api:
        with caplog.at_level(logging.INFO, "hidream"):
            submitted = (await api.submit(prompt="a private house")).json()["data"]
            await api.draw()
            url = (await api.get(submitted["urls"]["get"])).json()["data"]["outputs"][0]
            await api.client.get(url)
            await api.client.get("/nothing%0Ahere")
    id_ = submitted["id"]
    lines = [record.getMessage() for record in caplog.records if record.name == "hidream.server.access_log"]
    assert [re.sub(r" ms=[\d.]+ request=[0-9a-f]{32}", "", line) for line in lines] == [
        f"request method=POST route=/api/{{api}}/wavespeed-ai/{{name:path}} status=200 id={id_}",
        f"request method=GET route=/api/{{api}}/predictions/{{prediction_id}}/result status=200 id={id_}",
        "request method=GET route=/outputs/{name} status=200",
        "request method=GET route=none status=404",
    ]
    for hidden in (api.secret, "private", url.rsplit("/", 1)[1]):
        assert hidden not in caplog.text


async def test_a_method_that_is_not_accepted_is_logged_by_its_route(open_api, caplog):
    async with open_api() as api:
        with caplog.at_level(logging.INFO, "hidream"):
            await api.get("/api/v3/wavespeed-ai/hidream-i1-dev")
            await api.client.post("/healthz")
    lines = [record.getMessage() for record in caplog.records if record.name == "hidream.server.access_log"]
    assert [re.sub(r" ms=.*", "", line) for line in lines] == [
        "request method=GET route=/api/{api}/wavespeed-ai/{name:path} status=405",
        "request method=POST route=/healthz status=405",
    ]


async def test_an_id_that_is_none_is_not_logged(open_api, caplog):
    async with open_api() as api:
        with caplog.at_level(logging.INFO, "hidream"):
            await api.get("/api/v3/predictions/forged%20status=200%0Aline")
            await api.get(f"/api/v3/predictions/{'a' * 33}")
    lines = [record.getMessage() for record in caplog.records if record.name == "hidream.server.access_log"]
    assert len(lines) == 2
    assert not [line for line in lines if " id=" in line or "forged" in line]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("4bf92f3577b34da6a3ce929d0e0e4736", True), ("a-proxy's", False), ("x" * 64, True), ("x" * 65, False)]
    + [(strange, False) for strange in ("", "a b", "a\tb", "a=1;b", "\xe9", 'a"b')],
)
async def test_a_request_has_one_id_in_its_answer_and_in_the_log(open_api, caplog, sent, kept):
    async with open_api() as api:
        with caplog.at_level(logging.INFO, "hidream"):
            headers = [(b"X-Request-ID", sent.encode("latin-1"))]
            answers = [
                await api.client.get(path, headers=headers) for path in ("/healthz", "/api/v3/balance", "/nothing")
            ]
    assert [answer.status_code for answer in answers] == [200, 401, 404]
    lines = [record.getMessage() for record in caplog.records if record.name == "hidream.server.access_log"]
    for answer, line in zip(answers, lines, strict=True):
        (said,) = answer.headers.get_list("x-request-id")
        assert (said == sent) is kept
        assert re.fullmatch(r"[\w-]{1,64}", said)
        assert line.endswith(f" request={said}")


async def test_a_preflight_has_an_id_and_pages_may_read_it(open_api):
    async with open_api(cors_origins="https://app.example") as api:
        page = {"Origin": "https://app.example"}
        asking = page | {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "X-Request-ID"}
        preflight = await api.client.options("/api/v3/balance", headers=asking)
        answer = await api.client.get("/api/v3/balance", headers=page | api.bearer)
        assert (preflight.status_code, len(preflight.headers["x-request-id"])) == (200, 32)
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
