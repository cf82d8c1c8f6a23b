"""A worker process like `hidream worker`, but without the model: `python -m soak.fast_worker`, with the same settings.

It has everything that a worker does around its engine, and so what it proves of tasks, leases and files is true of
workers. What it draws is 16 × 16 pixels of a colour made from the seed, whatever size was asked; every 20th seed fails.
No torch, no weights: it starts in a second.
"""

import asyncio
import os
import signal
import sys

from hidream import logs
from hidream.configured_stores import open_configured_store
from hidream.errors import DatabaseGone, TaskFailed
from hidream.outputs.object_store import Namespace
from hidream.settings import sources
from hidream.store.database import Database
from hidream.store.workers import Worker, worker_id
from hidream.types import MODELS, Mode, Size
from hidream.worker.bridge import Bridge
from hidream.worker.generation import Tools
from hidream.worker.loop import WorkerLoop
from hidream.worker.main import stop_when_gone
from hidream.worker.retry import retry_unavailable
from worker.painter import Painter

SIDE_PX = 16
PACE_S = float(os.environ.get("FAST_WORKER_PACE_S", "0.005"))
"""Of one of the Painter's four steps."""
FAILS_EVERY = int(os.environ.get("FAST_WORKER_FAILS_EVERY", "20"))
"""0 is never."""


def fails(seed):
    return FAILS_EVERY > 0 and seed % FAILS_EVERY == 13


class FastPainter(Painter):
    """Remembers nothing of what it drew: a soak has no end."""

    def outcome(self, id_, request):
        if fails(request.seed):
            self.bad[request.seed] = TaskFailed("this seed fails")
        small = type(request)(prompt=request.prompt, size=Size(SIDE_PX, SIDE_PX), seed=request.seed)
        outcome = super().outcome(id_, small)
        self.bad.clear()
        self.requests.clear()
        self.prepared.clear()
        self.priorities.clear()
        self.together.clear()
        return outcome


async def main(config):
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    painter = FastPainter(pace_s=PACE_S)
    painter.go_on.set()
    bridge = Bridge()
    names = list(MODELS)
    bridge.set_engines(dict.fromkeys(names, painter))
    tools = Tools(
        flagged=lambda _pixels: False,
        outputs=open_configured_store(config, Namespace.OUTPUTS),
        uploads=open_configured_store(config, Namespace.UPLOADS),
        versions=dict.fromkeys(names, dict.fromkeys(Mode, "fast-worker-1")),
    )
    async with Database.open(config.database_url) as database:
        leaving = asyncio.create_task(stop_when_gone(database, stopping))
        await retry_unavailable(tools.outputs.check, stopping, "check")
        await WorkerLoop(database, bridge, Worker(worker_id(os.getpid()), names, "fast"), tools, config.worker).run(
            stopping
        )
        leaving.cancel()
    await bridge.close()
    return DatabaseGone.exit_status if database.gone.is_set() else 0


if __name__ == "__main__":
    logs.configure("text")
    sys.exit(asyncio.run(main(sources.load(os.environ))))
