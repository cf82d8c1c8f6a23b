"""API processes and fast workers on one database, as real processes that a test may kill, stop and start."""

import asyncio
import functools
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import sqlalchemy as sa
import sqlalchemy.ext.asyncio

from hidream.store.schema import KEYS, PREDICTIONS, UPLOADS

MODEL = "wavespeed-ai/hidream-i1-dev"
KEY = "hd_the-key-of-a-fleet"
TELLING, DIFFERENT = 6, 4
"""Characters that a text must have to be looked for, and different ones: others are in logs by chance."""
TESTS = Path(__file__).parents[1]
SOURCES = TESTS.parent / "src" / "hidream"


class Member:
    """One process; `log` is its standard error."""

    def __init__(self, kind, environ, log, command):
        self.kind, self.log = kind, log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, text=True
            )
        self._url = None

    @property
    def pid(self):
        return self.process.pid

    @property
    def alive(self):
        return self.process.poll() is None

    @property
    def listens(self):
        """Whether somebody has waited for `url`."""
        return self._url is not None

    @property
    def url(self):
        """Where an API process listens; waits until it does."""
        if self._url is None:
            line = self.process.stdout.readline()
            found = re.fullmatch(r"hidream is listening on (http://\S+)\n", line)
            assert found, f"{line!r}, {self.log.read_text()}"
            self._url = found[1]
        return self._url

    def stop(self, number=signal.SIGTERM):
        if self.alive:
            self.process.send_signal(number)
        status = self.process.wait(30)
        self.process.stdout.close()
        return status


class Fleet:
    """`with Fleet(folder, HIDREAM_...=...) as fleet`: so many processes of each kind, ready when the block begins.

    Their home, and with it SQLite's file and the images, is `folder/home` if the settings do not say otherwise.
    """

    def __init__(self, folder, *, apis=2, workers=2, serves=0, ready=True, home=None, **environ):
        self.folder, self.home = folder, home or folder / "home"
        ours = {name: value for name, value in os.environ.items() if not name.startswith("HIDREAM_")}
        self.environ = ours | {
            "HIDREAM_HOME": str(self.home),
            "HIDREAM_API_KEY": KEY,
            "HIDREAM_SERVER_PORT": "0",
            "HIDREAM_SERVER_QUEUE_MAX": "100000",
            "HIDREAM_SERVER_QUEUE_SHARE": "1",  # one key submits it all
            "HIDREAM_WORKER_LEASE_S": "2",
            "HIDREAM_WORKER_ATTEMPTS_MAX": "1000",  # no kill of ours may be a reason to fail
            "HIDREAM_WEBHOOKS_ALLOWED": "127.0.0.0/8",
            "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent / "src"))),
            **environ,
        }
        self.members, self.started, self._ready = [], 0, ready
        self._wanted = ["serve"] * serves + ["api"] * apis + ["worker"] * workers

    def __enter__(self):
        try:
            for kind in self._wanted:
                self.start(kind)
            for api in self.apis:
                assert api.url
            if self._ready:
                self.wait_until_ready()
        except BaseException:
            self.__exit__(BaseException)
            raise
        return self

    def __exit__(self, raised=None, *_):
        for member in self.members:
            member.stop(signal.SIGTERM if member.kind == "serve" else signal.SIGKILL)  # it ends its worker
        if raised is None:
            self.hold_logs()

    def hold_logs(self):
        """No log has a word of what clients have sent, nor a secret: they are read from the database."""
        with ThreadPoolExecutor(1) as pool:  # an event loop may run in this thread
            words = pool.submit(asyncio.run, told(self.database_url)).result() | {KEY}
        logs = self.logs()
        found = {word for word in words if word in logs}
        assert [line for line in logs.splitlines() if any(word in line for word in found)] == []

    @property
    def database_url(self):
        return self.environ.get("HIDREAM_STORE_DATABASE_URL") or f"sqlite+aiosqlite:///{self.home}/hidream.db"

    @property
    def apis(self):
        return [member for member in self.members if member.kind in ("api", "serve")]

    @property
    def workers(self):
        return [member for member in self.members if member.kind == "worker"]

    def start(self, kind):
        module = ["soak.fast_worker"] if kind == "worker" else ["hidream.cli", kind]
        log = self.folder / f"{kind}{self.started}.log"
        self.started += 1
        member = Member(kind, self.environ, log, [sys.executable, "-m", *module])
        self.members.append(member)
        return member

    def replace(self, member):
        """Kill a member with SIGKILL, and start another of its kind."""
        self.members.remove(member)
        member.stop(signal.SIGKILL)
        return self.start(member.kind)

    def client(self, **options):
        """A client of the first API."""
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=self.apis[0].url, headers=headers, timeout=60, **options)

    def wait_until_ready(self):
        with self.client() as http:
            until(lambda: http.get("/readyz").status_code == 200)

    def logs(self):
        """All that was logged, by whomever."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


async def told(url):
    """What the database knows and no log may: prompts, names of files, targets of webhooks and their secrets."""
    engine = sa.ext.asyncio.create_async_engine(url)
    try:
        async with engine.connect() as connection:
            inputs = [row[0] for row in await connection.execute(sa.select(PREDICTIONS.c.input))]
            columns = (PREDICTIONS.c.webhook, PREDICTIONS.c.output_name, UPLOADS.c.filename, UPLOADS.c.name)
            columns += (KEYS.c.webhook_secret, KEYS.c.webhook_secret_before, KEYS.c.hash)
            words = [text for each in columns for text in await connection.scalars(sa.select(each))]
    except sa.exc.OperationalError:  # a test has taken its database away
        words, inputs = [], []
    finally:
        await engine.dispose()
    words += [each[name] for each in inputs for name in ("prompt", "negative_prompt") if each.get(name)]
    return {word for word in words if telling(word)}


def telling(word):
    """Whether a text in a log must have come from a client.

    Hypothesis takes words from our sources ("connection"), which are in the lines of a log themselves.
    """
    return len(word) >= TELLING and len(set(word)) >= DIFFERENT and word not in own_words()


@functools.cache
def own_words():
    return {word for path in SOURCES.rglob("*.py") for word in re.findall(r"\w+", path.read_text())}


def until(condition, timeout_s=60):
    """Wait until `condition()` says something true."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return answer
