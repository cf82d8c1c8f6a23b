"""Two API processes and two workers on one PostgreSQL and one bucket: each may be replaced, and nothing is lost.

The worker that is killed outright is one without a model, which never ends what it has begun: of a process that is
killed there remain its rows and leases only, and so it need not load anything before it is.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from service import HANGS_S, MODEL, until

from postgres import postgres
from s3_server import BUCKET, KEY_ID, SECRET, S3Server

__all__ = ["postgres"]
KEY = "a key of the operator's"
TESTS = Path(__file__).parents[1]


class Process:
    """`hidream api`, `hidream worker`, or a `fast_worker`, which is slow here."""

    def __init__(self, kind, environ, log):
        self.log = log
        module = ["soak.fast_worker"] if kind == "fast_worker" else ["hidream.cli", kind]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *module],
                env=environ,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        if kind == "api":
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
            "FAST_WORKER_PACE_S": "1000",
            "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent / "src"))),
        }

        @contextmanager
        def one(kind, number):
            running = Process(kind, environ, tmp_path / f"{kind}{number}.log")
            try:
                yield running
            finally:
                if running.process.poll() is None:
                    running.stop(signal.SIGKILL)
                if kind == "api":
                    running.http.close()
                running.process.stdout.close()

        numbers = iter(range(100))
        yield lambda kind: stack.enter_context(one(kind, next(numbers)))


def test_replacing_every_process_loses_nothing(start):
    one, other, doomed = start("api"), start("api"), start("fast_worker")
    until(one.ready, HANGS_S, pause_s=0.2)
    ids = [api.submit(seed=seed) for seed in range(3) for api in (one, other)]
    until(doomed.works, HANGS_S)
    worker = start("worker")
    until(worker.works, HANGS_S)
    assert worker.stop() == 0  # it hands back what it draws
    doomed.stop(signal.SIGKILL)  # and this one hands back nothing
    assert one.stop() == 0
    third = start("api")
    start("worker")
    until(third.ready, HANGS_S, pause_s=0.2)
    until(lambda: all((other.result(id_))["status"] == "completed" for id_ in ids), 300)
    results = [other.result(id_) for id_ in ids]
    assert [result["seed"] for result in results] == [seed for seed in range(3) for _ in (one, other)]
    images = [third.http.get(httpx.URL(result["outputs"][0]).path).raise_for_status().content for result in results]
    assert all(images[i] == images[i + 1] for i in range(0, 6, 2))  # the same seed, whoever drew it
    figures = third.http.get("/metrics").text
    assert re.search(r'hidream_workers\{model="wavespeed-ai/hidream-i1-dev"\} [12]\.0', figures)
    assert KEY not in other.log.read_text()
    assert "sixteen and more" not in other.log.read_text()
