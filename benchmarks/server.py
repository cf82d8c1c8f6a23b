"""What the service costs beside the image, and how many submissions it acknowledges.

A real server on a real socket with nano. Overhead of a request is the time from a sync-mode submission (512², JPEG) to
its answer, less the model's time (`timings.inference`), the image checker's and the encoder's, the latter two measured
here on the same image. Submissions come from 16 connections at once, to `hidream api` alone and to `hidream serve`
while its worker draws; each is on the disk (SQLite, synchronous FULL) when it is acknowledged. Beside it, as the
ceiling: a bare FastAPI route of the same size that stores nothing, under the same load. The client writes the same
bytes over and over, because an HTTP library would cost more than the server.

    python benchmarks/server.py [--rounds 20] [--submits 2000] [--database-url URL]
    python benchmarks/server.py --beside CHECKOUT [--turns 3]

With the URL of an empty PostgreSQL database the same is measured there. With another checkout of the repository, its
server and this one's are measured in turns, for the medians of both in one run. There the API process's CPU time is
measured too (Linux): on a machine that others use as well it says more than the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import httpx
import numpy as np
from measure import Spread, report
from PIL import Image

from hidream.outputs.encode import encode
from hidream.safety.image import ImageChecker
from hidream.types import ImageFormat

CONNECTIONS = 16
HERE = Path(__file__).parents[1]
KEY = "hd_the-key-of-a-benchmark"
BODY = {"prompt": "flat style a fox in the snow", "size": "512*512", "seed": 7}
BARE = """
import fastapi, uvicorn
app = fastapi.FastAPI()
@app.post("/api/v3/wavespeed-ai/hidream-i1-dev")
async def submit(request: fastapi.Request):
    await request.json()
    return {"code": 200, "message": "success", "data": {"id": "x" * 32, "outputs": [], "status": "created"}}
print("listening on http://127.0.0.1:PORT", flush=True)
uvicorn.run(app, port=PORT, log_level="error")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--submits", type=int, default=2000)
    parser.add_argument("--database-url", default="")
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.beside is None:
        alone(arguments)
    else:
        in_turns(arguments)


def in_turns(arguments: argparse.Namespace) -> None:
    """Measure two checkouts, one after the other, again and again."""
    sides = {"this checkout": HERE, "the other": arguments.beside}
    submits: dict[str, list[float]] = {side: [] for side in sides}
    cpu_ms: dict[str, list[float]] = {side: [] for side in sides}
    overhead: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(arguments.turns):
        for side in sorted(sides, reverse=bool(turn % 2)):
            source = {"PYTHONPATH": str(sides[side] / "src")}
            with tempfile.TemporaryDirectory() as folder, hidream_server("api", "", folder, **source) as (url, key):
                before_s = children_cpu_s()
                submits[side].append(asyncio.run(submits_per_s(url, key, arguments.submits)))
                cpu_ms[side].append((children_cpu_s() - before_s) * 1000 / arguments.submits)
            with tempfile.TemporaryDirectory() as folder, hidream_server("serve", "", folder, **source) as (url, key):
                overhead[side] += overheads(url, key, arguments.rounds)
    rows: list[dict[str, object]] = [
        {
            "side": side,
            "submissions a second": f"{median(submits[side]):.0f} [{min(submits[side]):.0f}–{max(submits[side]):.0f}]",
            "CPU of a submission, ms": f"{median(cpu_ms[side]):.2f} [{min(cpu_ms[side]):.2f}–{max(cpu_ms[side]):.2f}]",
            "overhead of a sync request, ms": str(Spread.of(overhead[side])).strip(),
        }
        for side in sides
    ]
    ratio = median(submits["this checkout"]) / median(submits["the other"])
    settings = {"turns": arguments.turns, "submits": arguments.submits, "rounds": arguments.rounds}
    report("server, two checkouts", rows, settings | {"submissions, ratio": round(ratio, 3)})


def children_cpu_s() -> float:
    """Seconds of CPU time that the processes have taken which this one has started and that still run."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    threads = [thread for child in children for thread in Path(f"/proc/{child}/task").glob("*/schedstat")]
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def overheads(url: str, key: str, rounds: int) -> list[float]:
    """Seconds of so many requests in sync mode that are neither model, checker nor encoder."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        drop_waiting(client)
        return [one_overhead(client) for _ in range(rounds + 2)][2:]


def alone(arguments: argparse.Namespace) -> None:
    """Measure this checkout, beside a route that stores nothing."""
    with tempfile.TemporaryDirectory() as folder, hidream_server("api", arguments.database_url, folder) as (url, key):
        by_itself = asyncio.run(submits_per_s(url, key, arguments.submits))
    with bare_server() as url:
        bare = asyncio.run(submits_per_s(url, "none", arguments.submits))
    with tempfile.TemporaryDirectory() as folder, hidream_server("serve", arguments.database_url, folder) as (url, key):
        overhead = overheads(url, key, arguments.rounds)
        drawing = asyncio.run(submits_per_s(url, key, arguments.submits))
    rows: list[dict[str, object]] = [
        {"what": "overhead of a sync request, ms", "value": str(Spread.of(overhead)).strip()},
        {"what": "acknowledged submissions a second, an API process alone", "value": f"{by_itself:.0f}"},
        {"what": "the same while a worker draws beside it", "value": f"{drawing:.0f}"},
        {"what": "a bare route that stores nothing", "value": f"{bare:.0f}"},
    ]
    settings = {"connections": CONNECTIONS, "submits": arguments.submits, "rounds": arguments.rounds}
    report("server", rows, settings | {"database": arguments.database_url.partition(":")[0] or "sqlite+aiosqlite"})


def one_overhead(client: httpx.Client) -> float:
    """Seconds of one request that are neither model, checker nor encoder."""
    started = time.perf_counter()
    answer = client.post("/api/v3/wavespeed-ai/hidream-i1-dev", json=BODY | {"enable_sync_mode": True})
    total = time.perf_counter() - started
    data = answer.raise_for_status().json()["data"]
    assert data["status"] == "completed", data
    pixels = np.asarray(Image.open(io.BytesIO(client.get(data["outputs"][0]).content)))
    return total - data["timings"]["inference"] / 1000 - beside_s(pixels)


def drop_waiting(client: httpx.Client) -> None:
    """Cancel what an earlier measurement has left in a database that is shared."""
    while True:
        page = client.post("/api/v3/predictions", json={"status": "created", "page_size": 100}).raise_for_status()
        ids = [item["id"] for item in page.json()["data"]["items"]]
        if not ids:
            return
        client.post("/api/v3/predictions/delete", json={"ids": ids}).raise_for_status()


def beside_s(pixels: np.ndarray) -> float:
    """Seconds that the checker and the encoder take for this image."""
    started = time.perf_counter()
    CHECKER.flagged(pixels)
    encode(pixels, ImageFormat.JPEG, seed=7, version="x" * 60)
    return time.perf_counter() - started


async def submits_per_s(url: str, key: str, count: int) -> float:
    """Submit `count` tasks from all connections at once."""
    host, _, port = url.removeprefix("http://").partition(":")
    request, left = _request(key), iter(range(count))

    async def one_connection() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in left:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200"), head
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(one_connection() for _ in range(CONNECTIONS)))
    return count / (time.perf_counter() - started)


def _request(key: str) -> bytes:
    body = json.dumps(BODY).encode()
    head = (
        "POST /api/v3/wavespeed-ai/hidream-i1-dev HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*head, "", "")).encode() + body


@contextlib.contextmanager
def hidream_server(command: str, database_url: str, folder: str, **settings: str) -> Iterator[tuple[str, str]]:
    """`hidream serve` or `hidream api` with its home in `folder`: URL and key; `serve` has its worker ready."""
    environ = os.environ | {"HIDREAM_HOME": folder, "HIDREAM_SERVER_QUEUE_MAX": "1000000", "HIDREAM_API_KEY": KEY}
    environ |= {"HIDREAM_STORE_DATABASE_URL": database_url} | settings
    with _process([sys.executable, "-m", "hidream.cli", command, "--port", "0"], environ) as url:
        while command == "serve" and httpx.get(f"{url}/readyz").status_code != 200:
            time.sleep(0.1)
        yield url, KEY


@contextlib.contextmanager
def bare_server() -> Iterator[str]:
    with _process([sys.executable, "-c", BARE.replace("PORT", "8931")], dict(os.environ)) as url:
        for _ in range(100):
            with contextlib.suppress(httpx.ConnectError):
                httpx.get(url)
                break
            time.sleep(0.1)
        yield url


@contextlib.contextmanager
def _process(command: list[str], environ: dict[str, str]) -> Iterator[str]:
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        match = re.search(r"http://\S+", process.stdout.readline())
        assert match, "the server did not start"
        yield match[0]
    finally:
        process.terminate()
        process.wait(20)


CHECKER = ImageChecker(0.8)

if __name__ == "__main__":
    main()
