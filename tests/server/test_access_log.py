"""The access log: a line per request, and nothing in it that is not to be seen."""

import logging


def test_a_line_says_route_and_status_but_no_secret(with_api, caplog):
    async def scenario(api):
        with caplog.at_level(logging.INFO, "hidream"):
            submitted = (await api.submit(prompt="a private house")).json()["data"]
            await api.draw()
            url = (await api.get(submitted["urls"]["get"])).json()["data"]["outputs"][0]
            await api.client.get(url)
            await api.client.get("/nothing%0Ahere")
        return api.secret, url

    secret, url = with_api(scenario)
    lines = [record.getMessage() for record in caplog.records if record.name == "hidream.server.access_log"]
    assert [line.split(" ms=")[0] for line in lines] == [
        "request method=POST route=/api/{api}/wavespeed-ai/{name:path} status=200",
        "request method=GET route=/api/{api}/predictions/{prediction_id}/result status=200",
        "request method=GET route=/outputs/{name} status=200",
        "request method=GET route=none status=404",
    ]
    for hidden in (secret, "private", url.rsplit("/", 1)[1]):
        assert hidden not in caplog.text
