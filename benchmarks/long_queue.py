"""What a long queue costs: polls beside a worker that draws, and the start of a process on a full database.

Polls: 1,000 tasks wait in a real server with nano, which draws one at a time. In turn, 20 results a second are asked
for over all of them, and none, each for as long as a few images take; images' own inference times are compared.

Start: the seconds from starting `hidream api` until a client has its answer to the oldest waiting task's place, on a
database with 100,000 finished and 1,000 waiting tasks, and on an empty one; the model is the worker's, and not here.

    python benchmarks/long_queue.py [--rounds 6] [--starts 5] [--database-url URL]

With the URL of an empty PostgreSQL database the same is measured there.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence

import httpx
import sqlalchemy as sa
from measure import Spread, report

from hidream.store.database import Database
from hidream.store.schema import PREDICTIONS as P
from hidream.types import Status
from server import BODY, hidream_server

FINISHED, WAITING = 100_000, 1000
POLLS_PER_S = 20
IMAGES = 6
"""Drawn in each turn, of which the first may have begun in the turn before and is not counted."""
GET = "GET /api/v3/predictions/{id}/result HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
ROUTE = "/api/v3/wavespeed-ai/hidream-i1-dev"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--database-url", default="")
    arguments = parser.parse_args()
    quiet, polled, polls = drawing(arguments.rounds, arguments.database_url)
    slower = statistics.median(polled) / statistics.median(quiet) - 1
    empty, full = starts(arguments.starts, arguments.database_url)
    rows: list[dict[str, object]] = [
        {"what": "inference of a 512² image, 1,000 tasks waiting, ms", "value": str(Spread.of(quiet)).strip()},
        {"what": f"the same beside {POLLS_PER_S} polls a second, ms", "value": str(Spread.of(polled)).strip()},
        {"what": "slower by", "value": f"{100 * slower:.1f} %"},
        {"what": "a poll, ms", "value": str(Spread.of(polls)).strip()},
        {"what": "start to first answer, empty database, ms", "value": str(Spread.of(empty)).strip()},
        {"what": "the same with 100,000 finished and 1,000 waiting, ms", "value": str(Spread.of(full)).strip()},
    ]
    database = arguments.database_url.partition(":")[0] or "sqlite+aiosqlite"
    report("long_queue", rows, {"rounds": arguments.rounds, "starts": arguments.starts, "database": database})


def drawing(rounds: int, database_url: str) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each image's inference without polls and beside them, and of each poll."""
    times: tuple[list[float], list[float]] = [], []
    polls: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        hidream_server("serve", database_url, folder, HIDREAM_WORKER_TASKS_MAX="1") as (url, key),
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client,
    ):
        ids = [client.post(ROUTE, json=BODY).json()["data"]["id"] for _ in range(WAITING)]
        done = iter(ids)
        for turn in range(2 * rounds):
            over = threading.Event()
            poller = threading.Thread(target=poll, args=(url, key, ids, polls, over))
            if turn % 2:
                poller.start()
            drawn = [inference_s(client, id_) for id_ in itertools.islice(done, IMAGES)]
            over.set()
            if turn % 2:
                poller.join()
            times[turn % 2].extend(drawn[1:])
    return *times, polls


def inference_s(client: httpx.Client, id_: str) -> float:
    """Wait for an image; how long the model took for it."""
    while True:
        data = client.get(f"/api/v3/predictions/{id_}", params={"wait_s": 20}).raise_for_status().json()["data"]
        if data["status"] == "completed":
            return float(data["timings"]["inference"]) / 1000
        assert data["status"] in ("created", "processing"), data


def poll(url: str, key: str, ids: Sequence[str], taken: list[float], over: threading.Event) -> None:
    """Ask for the results of all ids in turn, until it is over; by bare sockets, for clients are elsewhere."""
    host, _, port = url.removeprefix("http://").partition(":")
    due = time.perf_counter()
    with socket.create_connection((host, int(port))) as connection, connection.makefile("rb") as answers:
        for id_ in itertools.cycle(ids):
            if over.wait(max(0.0, due - time.perf_counter())):
                return
            started = time.perf_counter()
            connection.sendall(GET.format(id=id_, key=key).encode())
            assert b" 200 " in answers.readline()
            heads = {
                name.lower(): value
                for name, _, value in (line.partition(b":") for line in iter(answers.readline, b"\r\n"))
            }
            answers.read(int(heads[b"content-length"]))
            taken.append(time.perf_counter() - started)
            due += 1 / POLLS_PER_S


def starts(count: int, database_url: str) -> tuple[list[float], list[float]]:
    """Seconds from the start of an API process to its first answer, on an empty and on a full database."""
    with tempfile.TemporaryDirectory() as folder:
        url = database_url or f"sqlite+aiosqlite:///{folder}/hidream.db"
        with hidream_server("api", url, folder) as (base, key):
            id_ = httpx.post(base + ROUTE, json=BODY, headers={"Authorization": f"Bearer {key}"}).json()["data"]["id"]
        empty = [first_answer_s(url, folder, id_) for _ in range(count)]
        asyncio.run(fill(url, id_))
        full = [first_answer_s(url, folder, id_) for _ in range(count)]
    return empty, full


def first_answer_s(database_url: str, folder: str, id_: str) -> float:
    started = time.perf_counter()
    with hidream_server("api", database_url, folder) as (base, key):
        answer = httpx.get(f"{base}/api/v3/predictions/{id_}/result", headers={"Authorization": f"Bearer {key}"})
        taken = time.perf_counter() - started
        assert answer.raise_for_status().json()["data"]["status"] == "created"
    return taken


async def fill(url: str, id_: str) -> None:
    """Write the rows by copying one, behind which all of them stand in the queue."""
    numbers = sa.select(sa.literal(1).label("n")).cte("numbers", recursive=True)
    numbers = numbers.union_all(sa.select(numbers.c.n + 1).where(numbers.c.n < FINISHED + WAITING - 1))
    waits = numbers.c.n > FINISHED
    new = {
        "id": sa.cast(numbers.c.n, sa.String),
        "status": sa.case((waits, Status.CREATED), else_=Status.COMPLETED),
        "started_ms": sa.case((waits, None), else_=P.c.created_ms),
        "finished_ms": sa.case((waits, None), else_=P.c.created_ms),
        "virtual_start": P.c.virtual_start + numbers.c.n * P.c.work,
    }
    columns = (new.get(column.key, column).label(column.key) for column in P.columns)
    copied = sa.select(*columns).select_from(sa.join(P, numbers, P.c.id == id_))
    async with Database.open(url) as database, database.write() as connection:
        await connection.execute(sa.insert(P).from_select(P.columns.keys(), copied))


if __name__ == "__main__":
    main()
