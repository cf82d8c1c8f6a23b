"""Starts `hidream serve` as a user does: a real socket, its own worker, and the embedded model."""

import os
import re
import signal
import subprocess
import sys
import time

import httpx

MODEL = "wavespeed-ai/hidream-i1-dev"
PROMPT = "a red apple"
HANGS_S = 240
"""A start that takes longer hangs: importing torch and loading nano takes ten seconds of a core, and others want it."""


class Service:
    """A server on a free port and the worker it keeps, with a home of their own."""

    python = sys.executable

    def __init__(self, home, **environ):
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("HIDREAM_")}
        self.environ |= {"HIDREAM_HOME": str(home)} | environ
        self.log = home.with_suffix(".log")
        self.key = environ.get("HIDREAM_API_KEY")
        self.start()

    def start(self):
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [self.python, "-m", "hidream.cli", "serve", "--port", "0"],
                env=self.environ,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.url = re.fullmatch(r"hidream is listening on (http://\S+)\n", self.process.stdout.readline())[1]
        if self.key is None:
            self.key = re.fullmatch(r"API key \(shown once\): (hd_\S+)\n", self.process.stdout.readline())[1]
        self.http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60)

    def stop(self):
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)  # it may take 20 s itself: requests, and then its worker, have 10 each
        self.said = self.process.stdout.read()
        self.process.stdout.close()
        return status

    def command(self, *arguments):
        """Run `hidream ...` in the same home, and return what it prints."""
        command = [self.python, "-m", "hidream.cli", *arguments]
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ready(self):
        return self.http.get("/readyz").status_code == 200

    def wait_until_ready(self):
        """Wait for the worker; who asks without a pause takes the core that it starts on."""
        until(self.ready, HANGS_S, pause_s=0.2)

    def submit(self, api="v3", **body):
        answer = self.http.post(f"/api/{api}/{MODEL}", json={"prompt": PROMPT} | body)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def result(self, data):
        """Wait for a task's end by long polls."""
        return until(lambda: self._ended(data), 240)

    def _ended(self, data):
        answer = self.http.get(data["urls"]["get"], params={"wait_s": 20})
        assert answer.status_code == 200, answer.text
        found = answer.json()["data"]
        return found if found["status"] not in ("created", "processing") else None

    def draw(self, api="v3", **body):
        """Give the finished prediction and the bytes of its image."""
        data = self.result(self.submit(api, enable_base64_output=False, **body))
        assert data["status"] == "completed", data
        return data, httpx.get(data["outputs"][0], timeout=60).raise_for_status().content

    def worker_pid(self):
        return int(re.findall(r"worker_started pid=(\d+)", self.log.read_text())[-1])


def until(condition, timeout_s=60, pause_s=0.02):
    """Wait until `condition()` says something true."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause_s)
    return answer
