"""The server process: where it listens, and how it starts and stops beside others on one database."""

import asyncio
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from http.client import HTTPConnection

import httpx
import pytest

from hidream.errors import ConfigurationError
from hidream.server.edge.listener import listen
from hidream.server.serve import run
from hidream.settings.tables import Outputs, Server, Settings, Store
from hidream.store import keys
from hidream.store.database import Database

pytestmark = pytest.mark.integration

MODEL = "wavespeed-ai/hidream-i1-dev"
KEY = "a key of the operator's"


class ApiProcess:
    """`hidream api` on a free port, started by the command `within`, if there is one."""

    def __init__(self, home, within=(), **environ):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HIDREAM_")}
        command = [*within, sys.executable, "-m", "hidream.cli", "api", "--port", "0"]
        self.process = subprocess.Popen(
            command,
            env=inherited | {"HIDREAM_HOME": str(home), "HIDREAM_API_KEY": KEY} | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = re.fullmatch(r"hidream is listening on (http://\S+)\n", self.process.stdout.readline())[1]
        self.http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)

    def submit(self, **body):
        answer = self.http.post(f"/api/v3/{MODEL}", json={"prompt": "a house"} | body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["id"]

    def status(self, id_):
        return self.http.get(f"/api/v3/predictions/{id_}").json()["data"]["status"]

    def stop(self):
        """Tell it to leave; the exit status, and how long that took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        _, self.log = self.process.communicate(timeout=30)
        return self.process.returncode, time.monotonic() - began


@contextmanager
def api(home, within=(), **environ):
    started = ApiProcess(home, within, **environ)
    try:
        yield started
    finally:
        started.http.close()
        if started.process.poll() is None:
            started.process.kill()
            started.process.communicate()


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1, port {port}"):
            run(Settings(home=tmp_path, server=Server(port=port)), with_worker=False)
        assert keys_of(Settings(home=tmp_path)) == []  # the first key is made, and shown, by a server that listens


def test_a_place_for_files_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file/outputs cannot be written to"):
        run(Settings(home=tmp_path, outputs=Outputs(url=str(tmp_path / "file"))), with_worker=False)


def test_what_fails_before_the_key_was_shown_leaves_none(tmp_path, monkeypatch):
    class Full:
        """Standard output on a disk that is full."""

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    settings = Settings(home=tmp_path, server=Server(port=0))
    with pytest.raises(OSError, match="No space left"):
        run(settings, with_worker=False)
    assert keys_of(settings) == []


def test_another_pepper_than_the_keys_is_refused_at_the_start(tmp_path):
    def settings(pepper):
        return Settings(home=tmp_path, api_key=KEY, server=Server(port=0), store=Store(key_pepper=pepper))

    with api(tmp_path, HIDREAM_STORE_KEY_PEPPER="one pepper of the operator's") as one:
        assert one.submit()
        for pepper in ("another of the operator's", ""):  # beside it, and later
            with pytest.raises(ConfigurationError, match="key_pepper") as raised:
                run(settings(pepper), with_worker=False)
            assert "operator" not in raised.value.message
        assert one.stop()[0] == 0
    without = replace(settings("another of the operator's"), api_key="")
    with pytest.raises(ConfigurationError, match="key_pepper"):
        run(without, with_worker=False)
    assert [key.name for key in keys_of(without)] == ["HIDREAM_API_KEY"]


def keys_of(settings):
    async def listed():
        async with Database.open(settings.database_url) as database:
            return await keys.list_keys(database)

    return asyncio.run(listed())


def test_one_leaves_and_another_has_all_that_was_acknowledged(tmp_path):
    with ExitStack() as stack:
        one, other = (stack.enter_context(api(tmp_path / "home", HIDREAM_SERVER_LOG_FORMAT="json")) for _ in range(2))
        assert one.http.get("/healthz").status_code == 200
        assert one.http.get("/readyz").status_code == 503  # nobody draws
        ids = [(one, other)[i % 2].submit(seed=i) for i in range(6)]
        assert {other.status(id_) for id_ in ids} == {"created"}
        with one.http.stream("GET", f"/api/v3/predictions/{ids[0]}/events") as stream:
            chunks = stream.iter_text()
            while "event: status" not in next(chunks):
                pass
            status, took_s = one.stop()
            assert not [chunk for chunk in chunks if "event:" in chunk]  # it ended, in good form
        assert status == 0
        assert took_s < 5
        third = stack.enter_context(api(tmp_path / "home"))
        assert {third.status(id_) for id_ in ids} == {"created"}
        assert other.stop()[0] == 0
        assert third.stop()[0] == 0
        lines = [json.loads(line) for line in one.log.splitlines()]
        asked = [line for line in lines if line["event"] == "request"]
        assert {line["route"] for line in asked} >= {"/healthz", "/api/{api}/predictions/{prediction_id}/events"}
        assert ids[0] in {line.get("id") for line in asked}
        assert KEY not in one.log + third.log
        assert "a house" not in one.log + third.log


def test_a_long_poll_ends_when_its_process_leaves(tmp_path):
    with api(tmp_path / "home") as one, closing(HTTPConnection(one.url.removeprefix("http://"), timeout=60)) as asking:
        path = f"/api/v3/predictions/{one.submit()}?wait_s=50"
        asking.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
        httpx.get(f"{one.url}/healthz", timeout=30).raise_for_status()  # connected later, so the other has been heard
        status, took_s = one.stop()
        assert (status, took_s < 5) == (0, True)
        assert json.load(asking.getresponse())["data"]["status"] == "created"


def test_an_answer_is_sent_at_once():
    with listen(Server(port=0)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
