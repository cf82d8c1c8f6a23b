"""The sweep itself, a process of its own: it has no thread and no event loop, so that it may fork.

Each lane has a database and a folder. A run empties them, forks a child that lives the story until it dies, forks
another that carries on, and asks the oracle. A lane ends with the first run in which nobody has died.

Reads what to do as JSON from its standard input, and writes what came of it to its standard output.
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
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import oracle
import story
from planted import FAULTS
from ports import DEATH, Sites, watch

from hidream.places import open_configured
from hidream.outputs.place import Namespace
from hidream.store import postgresql, sqlite
from hidream.store.database import Database

PATIENCE_S = 60
"""A child that takes longer hangs: it takes one or two."""


def main(job):
    folder, began = Path(job["folder"]), time.monotonic()
    receiver, port = receive(folder / "received")
    try:
        lanes = [fork(lambda i=i, url=url: lane(job, i, url, port), folder / f"lane{i}.log") for i, url in enumerate(job["urls"])]
        statuses = [wait(pid) for pid in lanes]
    finally:
        os.kill(receiver, signal.SIGKILL)
        os.waitpid(receiver, 0)
    results = folder / "results"
    runs = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    logs = [(folder / f"lane{i}.log").read_text()[-2000:] for i, status in enumerate(statuses) if status]
    struck, callers = Sites(folder, 1).listed()
    wrong = [run for run in runs if run["wrong"]]
    took_s = round(time.monotonic() - began, 1)
    passed = sum(not run["died"] for run in runs)
    return {"struck": struck, "callers": callers, "runs": len(runs), "passed": passed, "wrong": wrong, "logs": logs, "took_s": took_s}


def lane(job, number, url, port):
    folder, home = Path(job["folder"]), Path(job["folder"]) / f"home{number}"
    settings = story.settings(url, home, {})
    sqlite_prepare = fork(lambda: asyncio.run(prepare(url)), folder / "prepare.log")
    assert wait(sqlite_prepare) == 0, (folder / "prepare.log").read_text()
    count = 0
    while not (folder / "caught").exists():
        count += 1
        run = f"{number}-{count}"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        log, verdict = home / "log", home / "verdict"
        told = (job, settings, f"http://127.0.0.1:{port}/{run}", home / "memory")
        t0=time.monotonic()
        status = wait(fork(lambda: live(*told), log))
        t1=time.monotonic()
        again = wait(fork(lambda: carry_on(*told, folder / "received", run, verdict), log))
        print("TIMES", t1-t0, time.monotonic()-t1, status)
        wrong = [] if status in (0, DEATH) else [f"the first child ended with {status}"]
        wrong += json.loads(verdict.read_text()) if again == 0 else [f"the second child ended with {again}"]
        with (folder / "results").open("a") as file:
            where = (home / "site").read_text() if (home / "site").exists() else ""
            text = log.read_text()[-3000:] if wrong else ""
            file.write(json.dumps({"run": run, "died": status == DEATH, "site": where, "wrong": wrong, "log": text}) + "\n")
        if wrong:
            (folder / "caught").touch()
        if status == 0:
            return


async def prepare(url):
    async with Database.open(url) as database:
        await oracle.prepare(database)


def live(job, settings, hook, memory):
    """Live until death."""
    sites = Sites(Path(job["folder"]), job["alike"], job.get("only", ""), memory.parent / "site")
    ready(job, sites)

    async def run():
        async with Database.open(settings.database_url) as database:
            await oracle.clear(database)
        sites.armed = True
        async with asyncio.timeout(PATIENCE_S):
            await story.Story(settings, story.Memory(memory), hook, sites, first=True).live()

    asyncio.run(run())


def carry_on(job, settings, hook, path, received, run, verdict):
    """Look at what was left, carry on, and look again."""
    sites = Sites(Path(job["folder"]), job["alike"])
    ready(job, sites)
    memory = story.Memory(path)

    async def main():
        outputs = open_configured(settings, Namespace.OUTPUTS)
        async with Database.open(settings.database_url) as database:
            wrong = await oracle.at_death(database, memory, outputs)
            async with asyncio.timeout(PATIENCE_S):
                await story.Story(settings, memory, hook, sites, first=False).live()
            lines = map(json.loads, received.read_text().splitlines())
            mine = [line for line in lines if line["run"] == run]
            wrong += await oracle.at_end(database, memory, outputs, story.EXPECTED, mine)
        verdict.write_text(json.dumps(wrong))

    asyncio.run(main())


def ready(job, sites):
    """Do what every child does first."""

    async def done(*_):
        return None

    sqlite._migrate = postgresql._migrate = done  # it was done before, and takes longer than all the rest
    story.hurry()
    if job.get("fault"):
        FAULTS[job["fault"]]()
    watch(sites)


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

    class Receiver(BaseHTTPRequestHandler):
        busy = set()

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            _, run, tag = self.path.split("/")
            answered = 503 if tag == "bad" and run not in self.busy else 200  # so that one has to be sent again
            self.busy.add(run)
            line = {"run": run, "tag": tag, "webhook": self.headers["webhook-id"], "answered": answered}
            line |= {"prediction": body["id"], "status": body["status"]}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.send_response(answered)
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
    print(json.dumps(main(json.load(sys.stdin))))
