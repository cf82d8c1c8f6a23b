"""The sweep itself, in a process of its own without threads or an event loop, so that it may fork.

Each lane has a database and a folder. A run empties them and forks one child after the other: each asks the oracle
what the last one has left, and carries on with the story until it dies itself or has told it to the end. In the full
form a run has one death at most, in the short form as many as there are sites that nobody has died at: a life is then
as short as the way to the next site, where it would be a whole story otherwise. A lane ends with the first run in which
nobody has died, and all end when one has found something wrong. Files may be lost with the machine's power here, but
not with a process: durability against that is not what is tested.

Reads what to do (a `Job` as JSON) from its standard input, and writes what came of it to its standard output.
"""

import asyncio
import gc
import json
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import alembic.command  # noqa: F401 - it is slow to import, and each database is prepared in a child
import oracle
import story
from planted import FAULTS
from ports import DEATH, Sites, watch

from hidream.configured_stores import open_configured_store
from hidream.outputs.object_store import Namespace
from hidream.store import postgresql, sqlite
from hidream.store.database import Database

TIMEOUT_S = 60
"""A child that takes longer hangs: it takes one or two."""
TOLD_CHARS = 3000
"""Of a child's log, when something is wrong."""


@dataclass(frozen=True)
class Job:
    """`urls` has a database for each lane, `strike` what `Sites` is told, `bucket` is in place of a folder.

    `deaths_max` is how often somebody dies in one run.
    """

    folder: str
    urls: list
    strike: dict
    deaths_max: int
    fault: str = ""
    bucket: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run of a lane: what all its children are told."""

    job: Job
    name: str
    home: Path
    settings: object
    hook: str

    @property
    def folder(self):
        return Path(self.job.folder)

    @property
    def memory(self):
        return story.Memory(self.home / "memory")


def main(job):
    folder, began = Path(job.folder), time.monotonic()
    receiver, port = receive(folder / "received")
    try:
        logs = [folder / f"lane{number}.log" for number in range(len(job.urls))]
        lanes = [fork(lambda n=number: lane(job, n, port), log) for number, log in enumerate(logs)]
        statuses = [wait(pid) for pid in lanes]
    finally:
        os.kill(receiver, signal.SIGKILL)
        os.waitpid(receiver, 0)
    results = folder / "results"
    runs = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    struck, callers = Sites(folder).listed()
    return {
        "struck": struck,
        "callers": callers,
        "runs": len(runs),
        "deaths": sum(len(run["deaths"]) for run in runs),
        "calm": sum(not run["deaths"] for run in runs),
        "wrong": [run for run in runs if run["wrong"]],
        "broken": [log.read_text()[-TOLD_CHARS:] for log, status in zip(logs, statuses, strict=True) if status],
        "took_s": round(time.monotonic() - began, 1),
    }


def lane(job, number, port):
    """Run until a run passes, or something is wrong."""
    folder, home, url = Path(job.folder), Path(job.folder) / f"home{number}", job.urls[number]
    run_alone(lambda: prepare(url), folder / f"lane{number}.log")
    count, calm = 0, False
    while not (calm or (folder / "caught").exists()):
        count += 1
        name = f"{number}-{count}"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        bucket = job.bucket and job.bucket | {"url": f"{job.bucket['url']}/{name}"}
        run = Run(job, name, home, story.settings(url, home, bucket), f"http://127.0.0.1:{port}/{name}")
        calm = swept(run)


def swept(run):
    """Let one child after the other live; write down what came of it, and say whether none has died."""
    log, verdict = run.home / "log", run.home / "verdict"
    deaths, wrong, status = [], [], DEATH
    while status == DEATH and not wrong:
        verdict.unlink(missing_ok=True)
        status = wait(fork(lambda: asyncio.run(live(run, len(deaths), verdict)), log))
        wrong = json.loads(verdict.read_text()) if verdict.exists() else ["a child has seen nothing"]
        if status == DEATH and not wrong:
            deaths.append((run.home / "site").read_text())
        elif status not in (0, DEATH):
            wrong.append(f"a child ended with {status}")
    told = {"deaths": deaths, "wrong": wrong, "log": log.read_text()[-TOLD_CHARS:] if wrong else ""}
    with (run.folder / "results").open("a") as file:
        file.write(json.dumps(told) + "\n")
    if wrong:
        (run.folder / "caught").touch()
    return not deaths


async def prepare(url):
    async with Database.open(url) as database:
        await oracle.prepare(database)


async def live(run, number, verdict):
    """Look at what was left, live until death or to the end of the story, and look again."""
    sites = Sites(run.folder, last=run.home / "site", **run.job.strike)
    ready(run.job, sites)
    memory, outputs = run.memory, open_configured_store(run.settings, Namespace.OUTPUTS)
    async with Database.open(run.settings.database_url) as database:
        if number == 0:
            await oracle.clear(database)
        wrong = await oracle.at_death(database, memory, outputs)
        verdict.write_text(json.dumps(wrong))
        sites.armed = number < run.job.deaths_max
        async with asyncio.timeout(TIMEOUT_S):
            await story.Story(run.settings, memory, run.hook, sites, number).live()
        sites.armed = False
        lines = map(json.loads, (run.folder / "received").read_text().splitlines())
        received = [line for line in lines if line["run"] == run.name]
        wrong += await oracle.at_end(database, memory, outputs, story.EXPECTED, received)
    verdict.write_text(json.dumps(wrong))


def ready(job, sites):
    """Do what every child does first."""

    async def done(*_):
        return None

    sqlite._migrate = postgresql._migrate = done  # it was done, and takes longer than a story's statements
    story.hurry()
    if job.fault:
        FAULTS[job.fault]()
    watch(sites)


def run_alone(coroutine, log):
    """Run something asynchronous in a child, which must not fail."""
    assert wait(fork(lambda: asyncio.run(coroutine()), log)) == 0, log.read_text()


def fork(function, log):
    """Run a function in a child; what it prints goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def receive(path):
    """Begin a receiver of webhooks that writes down what comes before it answers; returns its process and port."""
    busy = set()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            _, run, tag = self.path.split("/")
            answer = 503 if tag == "bad" and run not in busy else 200  # so that one has to be sent again
            if tag == "bad":
                busy.add(run)
            line = {"run": run, "webhook": self.headers["webhook-id"], "answer": answer}
            line |= {"prediction": body["id"], "status": body["status"]}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.send_response(answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    path.touch()
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    pid = fork(server.serve_forever, path.with_suffix(".log"))
    server.server_close()
    return pid, server.server_port


if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # so that children share what was imported
    print(json.dumps(main(Job(**json.load(sys.stdin)))))  # noqa: T201 - it is what this process is for
