"""One installation under attack: an API process, a real worker, two keys, and what each process takes meanwhile.

`HIDREAM_ATTACKED` names another checkout whose code is to be attacked instead of this one: so figures of two releases
come from the same attack.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

MODEL = "wavespeed-ai/hidream-i1-dev"
ROOT = Path(os.environ.get("HIDREAM_ATTACKED", Path(__file__).parents[2]))
STOP_S = 60


class Site:
    """`with Site(folder, HIDREAM_...=...) as site`: `hidream serve`, ready when the block begins.

    `attacker` and `bystander` are the secrets of two keys with the usual scopes; `before` is called in the child before
    it becomes the server (limits of its process), and `limits` are flags of `hidream keys create` for the attacker.
    `draws` is whether it has a worker: one takes ten times as long to start as the API process. `loaded_mb` is what the
    worker held when it was ready, before its first image.
    """

    def __init__(self, folder, before=None, limits=(), draws=True, **environ):
        self.folder, self.home = folder, folder / "home"
        ours = {name: value for name, value in os.environ.items() if not name.startswith("HIDREAM_")}
        self._environ = ours | {
            "HIDREAM_HOME": str(self.home),
            "HIDREAM_API_KEY": "hd_the-operators-own-key",
            "HIDREAM_SERVER_PORT": "0",
            "HIDREAM_WEBHOOKS_ALLOWED": "127.0.0.0/8",
            "HIDREAM_WORKER_SERVES": "dev",
            "OMP_WAIT_POLICY": "passive",
            "PYTHONPATH": str(ROOT / "src"),
            **environ,
        }
        self._limits, self._before, self._draws = limits, before, draws
        self.log = folder / "serve.log"

    def __enter__(self):
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "hidream.cli", "serve" if self._draws else "api"]
            self.process = subprocess.Popen(
                command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=self._before,
            )
        try:
            self.url = self.process.stdout.readline().split()[-1]
            self.attacker = self._new_key("attacker", *self._limits)
            self.bystander = self._new_key("bystander")
            self._wait_until_ready()
            if self._draws:
                self.loaded_mb = memory_mb(self.worker_pid, "VmRSS")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.stop()
        self.process.stdout.close()

    def stop(self):
        """Tell it to end as systemd does; return after how many seconds it had."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return time.monotonic() - began

    def client(self, key, **options):
        """A client with one of the keys."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, **options)

    @property
    def worker_pid(self):
        """The worker beside the API process."""
        for pid in _children(self.process.pid):
            if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
        raise AssertionError("there is no worker")

    @property
    def api_mb(self):
        """The most that the API process has held of the memory, in MB."""
        return peak_mb(self.process.pid)

    @property
    def worker_mb(self):
        """The most that the worker has held."""
        return peak_mb(self.worker_pid)

    def _new_key(self, name, *limits):
        command = [sys.executable, "-m", "hidream.cli", "keys", "create", "--name", name, *limits]
        return subprocess.run(command, env=self._environ, check=True, capture_output=True, text=True).stdout.split()[0]

    def _wait_until_ready(self):
        deadline = time.monotonic() + 120
        with self.client("") as http:
            while http.get("/readyz" if self._draws else "/healthz").status_code != 200:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.2)


def peak_mb(pid):
    """Read the most that a process has held."""
    return memory_mb(pid, "VmHWM")


def memory_mb(pid, field):
    """Read a figure of a process's memory (proc(5), status)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} is gone")


def forget_peak(pid):
    """Count the peak anew from now on (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _children(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found
