"""What a proxy in front of the API must do, tested with the real ones and the shipped configurations."""

import io
import json
import re

import httpx
import pytest
from PIL import Image

from deploy.proxies import sockets_of, started
from soak.fleet import KEY, MODEL, Fleet, until

BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """An API process; nobody draws, so that a task stays what it is."""
    fleet = Fleet(tmp_path_factory.mktemp("proxied"), apis=1, workers=0)
    try:
        fleet.start("api")
        assert fleet.apis[0].url
        yield fleet
        assert "Traceback" not in fleet.logs()
    finally:
        fleet.__exit__()


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxy(request, fleet, tmp_path_factory):
    with started(
        request.param, tmp_path_factory.mktemp(request.param), httpx.URL(fleet.apis[0].url).netloc.decode()
    ) as proxy:
        yield proxy


@pytest.fixture
def http(proxy):
    with httpx.Client(base_url=proxy.url, headers=BEARER, timeout=60, verify=proxy.trust) as http:
        yield http


@pytest.fixture(scope="module")
def half_a_head(proxy):
    """A connection that never ends its head; it waits for the proxy's patience to end while other tests run."""
    with proxy.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n")
        yield connection


def submitted(http, **headers):
    answer = http.post(f"/api/v3/{MODEL}", json={"prompt": "a house"}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


@pytest.mark.usefixtures("half_a_head")
def test_urls_of_answers_lead_back_through_the_proxy(http, proxy):
    lie = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "ftp", "X-Forwarded-Prefix": "/evil"}
    for headers in ({}, lie):
        data = submitted(http, **headers)
        assert data["urls"]["get"] == f"{proxy.url}/api/v3/predictions/{data['id']}/result"


def test_events_pass_as_they_come(http):
    task = submitted(http)["id"]
    with http.stream("GET", f"/api/v3/predictions/{task}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        text, chunks = "", stream.iter_text()
        while "event: status" not in text:
            text += next(chunks)
        assert http.get(f"/api/v3/predictions/{task}").json()["data"]["status"] == "created"
        assert http.delete(f"/api/v3/predictions/{task}").status_code == 200
        text = "".join(chunks)
        assert json.loads(re.findall(r"^data: (.*)$", text, re.MULTILINE)[-1])["status"] == "cancelled"


def test_a_long_poll_is_not_cut_off(http):
    task = submitted(http)["id"]
    answer = http.get(f"/api/v3/predictions/{task}", params={"wait_s": 5})
    assert (answer.status_code, answer.json()["data"]["status"]) == (200, "created")


def test_metrics_are_for_the_inside(http, fleet):
    for path in ("/metrics", "/metrics?x", "/%6detrics", "//metrics", "/x/../metrics"):
        assert http.get(path).status_code == 404
        assert http.head(path).status_code == 404
    assert httpx.get(f"{fleet.apis[0].url}/metrics").status_code == 200
    assert http.get("/healthz").status_code == 200


def test_an_upload_passes_and_comes_back(http, proxy):
    file = io.BytesIO()
    Image.effect_noise((1800, 1800), 90).save(file, "PNG")
    sent = http.post("/api/v3/media/upload/binary", files={"file": ("a.png", file.getvalue())})
    assert sent.status_code == 200, sent.text
    url = sent.json()["data"]["download_url"]
    assert url.startswith(f"{proxy.url}/uploads/")
    assert http.get(url).content == file.getvalue()


def test_what_is_too_large_ends_at_the_proxy(http):
    headers = {"Content-Type": "application/json"}
    try:
        status = http.post(f"/api/v3/{MODEL}", content=bytes(30_000_000), headers=headers).status_code
    except httpx.WriteError:  # it did not wait for the end
        status = 413
    assert status == 413
    assert http.get("/healthz").status_code == 200


def test_the_answer_and_the_log_have_one_id(http, fleet):
    said = http.get("/nothing").headers["x-request-id"]
    until(lambda: f"request={said}" in fleet.apis[0].log.read_text())


def test_half_requests_stay_at_the_proxy(http, proxy, fleet):
    http.get("/healthz")
    before = sockets_of(fleet.apis[0].pid)
    heads = [b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n"] * 30
    if proxy.name == "nginx":  # Caddy passes a body on as it comes; the API has time-outs of its own
        heads += [b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx"] * 30
    held = []
    try:
        for head in heads:
            held.append(proxy.connect())
            held[-1].sendall(head)
        assert http.get("/healthz").status_code == 200
        assert sockets_of(fleet.apis[0].pid) <= before + 5
    finally:
        for each in held:
            each.close()


def test_who_does_not_end_a_head_is_closed(half_a_head):
    answer = half_a_head.recv(65536)
    assert answer == b"" or b" 408 " in answer.partition(b"\r\n")[0]


def test_what_could_be_smuggled_does_not_pass(proxy, fleet):
    body = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"POST /first HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: %d\r\n" % len(
        body
    )
    with proxy.connect() as connection:
        connection.sendall(head + b"Connection: close\r\n\r\n" + body)
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answers.count(b"HTTP/1.1 ") <= 1
