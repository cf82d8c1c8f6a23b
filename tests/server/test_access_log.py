"""The access log: a line per request, and nothing in it that is not to be seen."""

import logging
import re


def test_a_line_says_route_and_status_but_no_secret(with_api, caplog):
    async def scenario(api):
        with caplog.at_level(logging.INFO, "hidream"):
            submitted = (await api.submit(prompt="a private house")).json()["data"]
            await api.draw()
            url = (await api.get(submitted["urls"]["get"])).json()["data"]["outputs"][0]
            await api.client.get(url)
            await api.client.get("/nothing%0Ahere")
        return api.secret, url, submitted["id"]

    secret, url, id_ = with_api(scenario)
    lines = [record.getMessage() for record in caplog.records if record.name == "hidream.server.access_log"]
    assert [re.sub(r" ms=[\d.]+", "", line) for line in lines] == [
        f"request method=POST route=/api/{{api}}/wavespeed-ai/{{name:path}} status=200 id={id_}",
        f"request method=GET route=/api/{{api}}/predictions/{{prediction_id}}/result status=200 id={id_}",
        "request method=GET route=/outputs/{name} status=200",
        "request method=GET route=none status=404",
    ]
    for hidden in (secret, "private", url.rsplit("/", 1)[1]):
        assert hidden not in caplog.text


def test_an_id_that_is_none_is_not_logged(with_api, caplog):
    async def scenario(api):
        with caplog.at_level(logging.INFO, "hidream"):
            await api.get("/api/v3/predictions/forged%20status=200%0Aline")
            await api.get(f"/api/v3/predictions/{'a' * 33}")

    with_api(scenario)
    lines = [record.getMessage() for record in caplog.records if record.name == "hidream.server.access_log"]
    assert len(lines) == 2
    assert not [line for line in lines if "id=" in line.replace("{prediction_id}", "") or "forged" in line]
