"""Two API processes and two workers on one PostgreSQL and one bucket: whoever is replaced, nothing is lost."""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from service import MODEL, until

from postgres import postgres
from s3_server import BUCKET, KEY_ID, SECRET, S3Server

__all__ = ["postgres"]
KEY = "a key of the operator's"


class Process:
    """`hidream api` or `hidream worker`."""

    def __init__(self, command, environ, log):
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hidream.cli", *command],
                env=environ,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        if command[0] == "api":
            url = re.fullmatch(r"hidream is listening on (http://\S+)\n", self.process.stdout.readline())[1]
            self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    def submit(self, **body):
        answer = self.http.post(f"/api/v3/{MODEL}", json={"prompt": "a red apple", "size": "1024*1024"} | body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["id"]

    def result(self, id_):
        answer = self.http.get(f"/api/v3/predictions/{id_}", params={"wait_s": 20})
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def ready(self):
        return self.http.get("/readyz").status_code == 200

    def works(self):
        return "task_started" in self.log.read_text()

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


@pytest.fixture
def start(tmp_path, postgres):
    with ExitStack() as stack:
        s3 = stack.enter_context(S3Server(tmp_path / "s3"))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("HIDREAM_")} | {
            "HIDREAM_HOME": str(tmp_path / "home"),
            "HIDREAM_API_KEY": KEY,
            "HIDREAM_SERVER_PORT": "0",
            "HIDREAM_STORE_DATABASE_URL": postgres.url(),
            "HIDREAM_STORE_KEY_PEPPER": "sixteen and more characters",
            "HIDREAM_OUTPUTS_URL": f"s3://{BUCKET}/here",
            "HIDREAM_OUTPUTS_ENDPOINT": s3.access().endpoint,
            "HIDREAM_OUTPUTS_REGION": "us-east-1",
            "HIDREAM_OUTPUTS_ACCESS_KEY_ID": KEY_ID,
            "HIDREAM_OUTPUTS_SECRET_ACCESS_KEY": SECRET,
            "HIDREAM_WORKER_LEASE_S": "4",
            "HIDREAM_WORKER_ATTEMPTS_MAX": "100",  # a machine that stands still for so long ends leases too
            "HIDREAM_WORKER_SERVES": "dev",
            "HIDREAM_WORKER_TASKS_MAX": "2",
        }

        @contextmanager
        def one(command, number):
            running = Process([command], environ, tmp_path / f"{command}{number}.log")
            try:
                yield running
            finally:
                if running.process.poll() is None:
                    running.stop(signal.SIGKILL)
                if command == "api":
                    running.http.close()
                running.process.stdout.close()

        numbers = iter(range(100))
        yield lambda command: stack.enter_context(one(command, next(numbers)))


@pytest.mark.timeout(900)  # three workers start one after the other, each with its model
def test_replacing_every_process_loses_nothing(start):
    one, other, worker = start("api"), start("api"), start("worker")
    until(one.ready, 90)
    ids = [api.submit(seed=seed) for seed in range(3) for api in (one, other)]
    until(worker.works)
    second = start("worker")
    assert worker.stop() == 0  # it hands back what it draws
    assert one.stop() == 0
    third = start("api")
    until(second.works, 90)
    second.stop(signal.SIGKILL)  # and this one hands back nothing
    start("worker")
    until(third.ready, 90)
    until(lambda: all((other.result(id_))["status"] == "completed" for id_ in ids), 300)
    results = [other.result(id_) for id_ in ids]
    assert [result["seed"] for result in results] == [seed for seed in range(3) for _ in (one, other)]
    pictures = [third.http.get(httpx.URL(result["outputs"][0]).path).raise_for_status().content for result in results]
    assert all(pictures[i] == pictures[i + 1] for i in range(0, 6, 2))  # the same seed, whoever drew it
    figures = third.http.get("/metrics").text
    assert re.search(r'hidream_workers\{model="wavespeed-ai/hidream-i1-dev"\} [12]\.0', figures)
    assert KEY not in other.log.read_text()
    assert "sixteen and more" not in other.log.read_text()
