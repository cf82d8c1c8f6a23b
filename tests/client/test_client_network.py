"""Both clients on real sockets, against servers that drop connections, are slow, or answer nonsense."""

import asyncio
import gzip
import io
import json
import logging
import threading

import pytest
from PIL import Image
from rude import RudeServer, http
from world import DONE, TASK

from hidream.client import calls, events, runners
from hidream.client.async_client import AsyncClient
from hidream.client.client import Client
from hidream.client.retries import Retry
from hidream.errors import ConnectionFailed, NotFound, ServerError, TimedOut, TooMany, Unauthorized

pytestmark = pytest.mark.integration

AT_ONCE = Retry(attempts=4, first_s=0, longest_s=0)
RUNNING = TASK | {"status": "processing"}


def answer(data, status="200 OK", **headers):
    code = int(status.split()[0])
    body = {"code": code, "data": data} if code == 200 else {"code": code, "message": data, "data": None}
    return [http(json.dumps(body).encode(), status, **headers)]


def image():
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Polls follow one another at once."""
    monkeypatch.setattr(calls, "POLL_FIRST_S", 0.01)
    monkeypatch.setattr(calls, "POLL_LONGEST_S", 0.01)
    monkeypatch.setattr(events, "POLL_LONGEST_S", 0.01)


@pytest.fixture(params=["threads", "event loop"])
def use(request):
    """Call a method of a client: `use(url, "get", id)`; events come as a list, and a task can be asked further."""

    def threads(url, *calls, **options):
        with Client(url, "hd_secret", **{"retry": AT_ONCE} | options) as found:
            for name, *arguments in calls:
                found = getattr(found, name)(*arguments)
            return list(found) if hasattr(found, "__next__") else found

    def event_loop(url, *calls, **options):
        async def main():
            async with AsyncClient(url, "hd_secret", **{"retry": AT_ONCE} | options) as found:
                for name, *arguments in calls:
                    found = getattr(found, name)(*arguments)
                    if not hasattr(found, "__anext__"):
                        found = await found
                return [each async for each in found] if hasattr(found, "__anext__") else found

        return asyncio.run(main())

    return threads if request.param == "threads" else event_loop


class Scripted:
    """Answers of a server by path: each request takes the next one of its list, and the last one stays."""

    def __init__(self, **answers):
        self.answers = answers

    def __call__(self, line, headers, body):
        for name, answers in self.answers.items():
            if name in line:
                return answers.pop(0) if len(answers) > 1 else answers[0]
        return answer("no such path", "404 Not Found")


def hosted(url):
    """The API of WaveSpeed: no events, no delayed responses, no Idempotency-Key, no seed, nine digits in times."""
    now = {"created_at": "2025-05-19T06:09:15.948268264Z", "urls": {"get": "https://h/api/v3/predictions/1/result"}}
    bare = {name: value for name, value in DONE.items() if name != "seed"}
    done = bare | now | {"outputs": [f"{url}/d.png"], "timings": {"inference": 3087}, "has_nsfw_contents": [False]}
    return Scripted(
        **{
            "POST /api/v3/wavespeed-ai/hidream-i1-dev": [answer(TASK | now)],
            "/result": [answer(TASK | now), answer(RUNNING | now), answer(done)],
            "/d.png": [[http(image(), content_type="image/png")]],
            "POST /api/v3/predictions ": [answer({"page": 1, "total": 1, "items": [done]})],
            "/balance": [answer({"balance": 123.45})],
        }
    )


def test_the_hosted_api_is_polled(use, tmp_path):
    with RudeServer(None) as server:
        server.answer = hosted(server.url)
        result = use(server.url, ("generate", "a fox"))
        assert (result.image.size, result.seed, result.timings.inference_s) == ((8, 6), None, 3.087)
        assert result.save(tmp_path / "fox.png")[0].read_bytes() == image()
        server.answer = hosted(server.url)
        states = [event.status for event in use(server.url, ("submit", "a fox"), ("events",))]
        assert states == ["created", "processing", "completed"]
        (task,) = use(server.url, ("list",))
        assert task.status == "completed"
        assert use(server.url, ("balance",)) == 123.45
        key = server.requests[-1][1]["authorization"]
        assert key == "Bearer hd_secret"
        assert all("authorization" not in headers for line, headers, _ in server.requests if "d.png" in line)


@pytest.mark.parametrize(
    "pieces", [[], [None], [b"HTTP/1.1 200 OK\r\n"], [http(b'{"data"', length=99)], [b"220 ftp\r\n"]]
)
def test_broken_answers_are_requested_again(use, pieces):
    with RudeServer(Scripted(**{"GET": [pieces, pieces, answer(TASK)]})) as server:
        assert use(server.url, ("get", TASK["id"])).id == TASK["id"]
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    "pieces", [[], [None], [b"HTTP/1.1 200 OK\r\n"], [http(b'{"data"', length=99)], [http(b"<html>")]]
)
def test_a_submission_to_a_server_without_keys_is_not(use, pieces):
    with RudeServer(Scripted(POST=[pieces, answer(TASK)])) as server:
        with pytest.raises((ConnectionFailed, ServerError)):
            use(server.url, ("submit", "a fox"))
        assert [line.split()[0] for line, _, _ in server.requests] == ["POST", "GET"]  # a question about keys


@pytest.mark.parametrize("pieces", [[], [None], [b"HTTP/1.1 200 OK\r\n"], answer("busy", "503 Service Unavailable")])
def test_a_submission_to_a_server_with_keys_is_sent_again_with_its_key(use, pieces):
    known = {"openapi.json": [[http(b'{"name": "Idempotency-Key"}')]]}
    with RudeServer(Scripted(POST=[pieces, pieces, answer(TASK)], **known)) as server:
        use(server.url, ("submit", "a fox"))
        posts = [headers["idempotency-key"] for line, headers, _ in server.requests if line.startswith("POST")]
        assert len(posts) == 3
        assert len(set(posts)) == 1


def test_a_full_queue_is_waited_for_by_every_server(use):
    busy = answer("queue full", "429 Too Many Requests", Retry_After="0")
    with RudeServer(Scripted(POST=[busy, busy, answer(TASK)])) as server:
        assert use(server.url, ("submit", "a fox")).id == TASK["id"]


def test_a_long_retry_after_is_an_error_with_its_seconds(use):
    busy = answer("try later", "429 Too Many Requests", Retry_After="900", X_Request_ID="r7")
    with RudeServer(Scripted(GET=[busy])) as server, pytest.raises(TooMany, match="try later") as raised:
        use(server.url, ("get", TASK["id"]), timeout=60)
    assert (raised.value.retry_after_s, raised.value.status, raised.value.request_id) == (900, 429, "r7")


def test_errors_and_logs_do_not_contain_the_key(use, caplog):
    caplog.set_level(logging.DEBUG)
    with (
        RudeServer(Scripted(GET=[answer("unknown key", "401 Unauthorized")])) as server,
        pytest.raises(Unauthorized) as raised,
    ):
        use(server.url, ("balance",))
    assert "hd_secret" not in caplog.text + repr(raised.value) + "".join(raised.value.__notes__)


def test_a_server_that_never_answers_takes_no_longer_than_the_timeout(use):
    never = threading.Event()
    with RudeServer(Scripted(GET=[[never]])) as server:
        with pytest.raises(TimedOut, match="has not answered in time"):
            use(server.url, ("get", TASK["id"]), timeout=0.3)
        never.set()


def test_nor_does_one_that_answers_a_byte_at_a_time(use):
    """Each byte comes at once, but the last one never."""
    never = threading.Event()
    with RudeServer(Scripted(GET=[[*(bytes([byte]) for byte in http(b"{}", length=3)), never]])) as server:
        with pytest.raises(TimedOut):
            use(server.url, ("get", TASK["id"]), timeout=0.3)
        never.set()


def test_nor_does_an_error_in_place_of_a_stream(use):
    never = threading.Event()
    slow = [*(bytes([byte]) for byte in http(b"no", "500 Internal Server Error", length=3)), never]
    with RudeServer(Scripted(**{"/events": [slow], "": [answer(TASK)]})) as server:
        with pytest.raises(TimedOut):
            use(server.url, ("get", TASK["id"]), ("events", 0.3))
        never.set()


@pytest.mark.parametrize("compressed", [True, False])
def test_a_response_that_is_too_long_is_not_read_to_its_end(use, compressed, monkeypatch):
    monkeypatch.setattr(runners, "CONTENT_MAX_BYTES", 10**5)
    long = gzip.compress(bytes(10**6)) if compressed else bytes(10**6)
    encoding = {"Content_Encoding": "gzip"} if compressed else {}
    with RudeServer(None) as server:
        done = DONE | {"outputs": [f"{server.url}/1.png"]}
        server.answer = Scripted(**{"/1.png": [[http(long, **encoding)]], "": [answer(done)]})
        with pytest.raises(ServerError, match="the response has more than 100000 bytes"):
            use(server.url, ("get", TASK["id"]), ("result",))


def test_an_event_id_may_be_any_text(use):
    begun = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    step = 'id: é\nevent: progress\ndata: {"step": 1, "steps": 2}\n\n'.encode()
    end = f"event: status\ndata: {json.dumps(DONE)}\n\n".encode()
    with RudeServer(Scripted(**{"/events": [[begun, step], [begun, end]], "": [answer(TASK)]})) as server:
        states = [event.status for event in use(server.url, ("get", TASK["id"]), ("events",))]
        assert states == ["created", "created", "completed"]
        assert server.requests[-1][1]["last-event-id"].encode("latin-1").decode() == "é"


def test_a_redirect_of_the_api_is_an_error_that_names_it(use):
    with (
        RudeServer(Scripted(GET=[answer("", "308 Permanent Redirect", Location="https://h/login")])) as server,
        pytest.raises(ServerError, match="redirects to 'https://h/login'"),
    ):
        use(server.url, ("get", TASK["id"]))


def test_a_port_that_nobody_listens_on_is_an_error_that_names_it(use):
    with RudeServer(None) as server:
        url = server.url
    with pytest.raises(ConnectionFailed, match=f"{url} cannot be reached"):
        use(url, ("get", TASK["id"]))


def stream(*events):
    blocks = [f"event: {name}\nid: {number}\ndata: {json.dumps(data)}\n\n" for number, name, data in events]
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + "".join(blocks).encode()


def test_a_stream_that_breaks_goes_on_with_the_last_event(use):
    first = stream((1, "status", RUNNING), (2, "progress", {"step": 1, "steps": 2}))
    second = stream((3, "progress", {"step": 2, "steps": 2}), (4, "status", DONE))
    events = [[first + b"event: status\ndata: {", None], [], answer("busy", "503 Service Unavailable"), [second]]
    with RudeServer(Scripted(**{"/events": events, "/result": [answer(TASK)]})) as server:
        told = use(server.url, ("get", TASK["id"]), ("events",))
        lasts = [headers.get("last-event-id") for line, headers, _ in server.requests if "/events" in line]
    shown = [(event.status, event.step) for event in told]
    assert shown == [("created", 0), ("processing", 0), ("processing", 1), ("processing", 2), ("completed", 2)]
    assert lasts == [None, "2", "2", "2"]


def test_events_come_while_the_stream_is_open():
    """The server sends the second event only when the first one has been given to the user."""
    seen = threading.Event()
    pieces = [stream((1, "status", RUNNING)), seen, stream((2, "status", DONE)).partition(b"\r\n\r\n")[2]]
    with RudeServer(Scripted(**{"/events": [pieces], "/result": [answer(TASK)]})) as server:
        with Client(server.url, "hd_secret", retry=AT_ONCE) as client:
            for event in client.get(TASK["id"]).events():
                if event.status == "processing":
                    seen.set()
        assert event.status == "completed"


def test_who_stops_listening_closes_the_stream(use):
    never = threading.Event()
    pieces = [stream((1, "status", RUNNING)), never]
    with RudeServer(Scripted(**{"/events": [pieces], "/result": [answer(TASK)]})) as server:
        with Client(server.url, "hd_secret") as client:
            events = client.get(TASK["id"]).events()
            assert [next(events).status, next(events).status] == ["created", "processing"]
            events.close()
            assert client._runner.http._transport._pool.connections == []
        never.set()


def test_a_task_that_is_gone_is_not_found(use):
    with (
        RudeServer(Scripted(GET=[answer("there is no prediction", "404 Not Found")])) as server,
        pytest.raises(NotFound, match="there is no prediction"),
    ):
        use(server.url, ("get", TASK["id"]))


def test_nobody_downloads_half_an_image(use):
    with RudeServer(None) as server:
        done = DONE | {"outputs": [f"{server.url}/d.png"]}
        half = [http(image()[:30], length=len(image()))]
        server.answer = Scripted(**{"/result": [answer(done)], "/d.png": [half, [http(image())]]})
        assert use(server.url, ("get", TASK["id"]), ("result",)).files == (image(),)


@pytest.mark.parametrize("output", ["http://[/", "http://h/\ud800", "http://\ud800/", "http:///1.png"])
def test_an_output_that_is_no_address_is_an_error(use, output):
    with (
        RudeServer(Scripted(**{"/result": [answer(DONE | {"outputs": [output]})]})) as server,
        pytest.raises(ConnectionFailed),
    ):
        use(server.url, ("get", TASK["id"]), ("result",))
