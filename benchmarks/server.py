"""What the service costs beside the picture, and how many submissions it acknowledges.

A real server on a real socket with nano. Overhead of a request is the time from a sync-mode submission (512², JPEG) to
its answer, less the model's time (`timings.inference`), the image checker's and the encoder's, the latter two measured
here on the same picture. Submissions come from 16 connections at once while the worker draws; each is on the disk
(SQLite, synchronous FULL) when it is acknowledged. Beside it, as the peer: a bare FastAPI route of the same size that
stores nothing, under the same load.

    python benchmarks/server.py [--rounds 20] [--submits 1000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import httpx
import numpy as np
from measure import Spread, report
from PIL import Image

from hidream.outputs.encode import encode
from hidream.safety.image import ImageChecker
from hidream.types import ImageFormat

CONNECTIONS = 16
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
    parser.add_argument("--submits", type=int, default=1000)
    arguments = parser.parse_args()
    with hidream_server() as (url, key):
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            overhead = [one_overhead(client) for _ in range(arguments.rounds + 2)][2:]
        ours = asyncio.run(submits_per_s(url, key, arguments.submits))
    with bare_server() as url:
        bare = asyncio.run(submits_per_s(url, "none", arguments.submits))
    rows: list[dict[str, object]] = [
        {"what": "overhead of a sync request, ms", "value": str(Spread.of(overhead)).strip()},
        {"what": "acknowledged submissions a second", "value": f"{ours:.0f}"},
        {"what": "the same, a bare route that stores nothing", "value": f"{bare:.0f}"},
    ]
    report("server", rows, {"connections": CONNECTIONS, "submits": arguments.submits, "rounds": arguments.rounds})


def one_overhead(client: httpx.Client) -> float:
    """Seconds of one request that are neither model, checker nor encoder."""
    started = time.perf_counter()
    answer = client.post("/api/v3/wavespeed-ai/hidream-i1-dev", json=BODY | {"enable_sync_mode": True})
    total = time.perf_counter() - started
    data = answer.raise_for_status().json()["data"]
    assert data["status"] == "completed", data
    pixels = np.asarray(Image.open(io.BytesIO(client.get(data["outputs"][0]).content)))
    return total - data["timings"]["inference"] / 1000 - beside_s(pixels)


def beside_s(pixels: np.ndarray) -> float:
    """Seconds that the checker and the encoder take for this picture."""
    started = time.perf_counter()
    CHECKER.flagged(pixels)
    encode(pixels, ImageFormat.JPEG, seed=7, version="x" * 60)
    return time.perf_counter() - started


async def submits_per_s(url: str, key: str, count: int) -> float:
    """Submit `count` tasks from all connections at once."""
    headers, left = {"Authorization": f"Bearer {key}"}, iter(range(count))

    async def one_connection() -> None:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
            for _ in left:
                (await client.post("/api/v3/wavespeed-ai/hidream-i1-dev", json=BODY)).raise_for_status()

    started = time.perf_counter()
    await asyncio.gather(*(one_connection() for _ in range(CONNECTIONS)))
    return count / (time.perf_counter() - started)


@contextlib.contextmanager
def hidream_server() -> Iterator[tuple[str, str]]:
    """`hidream serve` in a home of its own, its worker ready: URL and key."""
    with tempfile.TemporaryDirectory() as home:
        environ = os.environ | {"HIDREAM_HOME": home, "HIDREAM_SERVER_QUEUE_MAX": "1000000", "HIDREAM_API_KEY": "bench"}
        with _process([sys.executable, "-m", "hidream.cli", "serve", "--port", "0"], environ) as url:
            while httpx.get(f"{url}/readyz").status_code != 200:
                time.sleep(0.1)
            yield url, "bench"


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
