"""A worker process from its start to its end: load the model, work, and leave when told to.

It is told by SIGTERM or SIGINT, or, when a parent holds the other end of its standard input, by that parent's
end.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from hidream.errors import ConfigurationError, Interrupted
from hidream.settings import Settings
from hidream.store.database import Database
from hidream.store.workers import Worker, worker_id
from hidream.types import MODELS, Variant
from hidream.worker.bridge import Bridge
from hidream.worker.loop import Loop, Tools

if TYPE_CHECKING:
    from hidream.model.loading import Model

logger = logging.getLogger(__name__)


def run(settings: Settings, with_parent: bool) -> int:
    """Work until told to stop; the exit status is 0, or that of ConfigurationError if a start is hopeless."""
    try:
        idle = asyncio.run(_run(settings, with_parent))
    except ConfigurationError as error:
        logger.error("worker_cannot_start error=%s", error.message)
        return error.exit_status
    if not idle:
        logging.shutdown()
        os._exit(0)  # the model thread is inside a call that nothing can interrupt, and nobody waits for its outcome
    return 0


async def _run(settings: Settings, with_parent: bool) -> bool:
    """Return whether the model thread is idle at the end."""
    stopping = asyncio.Event()
    _listen(stopping, with_parent)
    bridge = Bridge()
    async with Database.open(settings.database_url) as database:
        try:
            model, tools = await bridge.run(lambda: _load(settings), stopping)
        except Interrupted:
            return not bridge.busy
        worker = Worker(worker_id(os.getpid()), list(MODELS), model.version)
        await Loop(database, bridge, worker, tools, settings.worker).run(stopping)
    return not bridge.busy


def _listen(stopping: asyncio.Event, with_parent: bool) -> None:
    """Have `stopping` set by a signal or by the parent's end."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if with_parent:
        stdin = sys.stdin.fileno()

        def on_stdin() -> None:
            if not os.read(stdin, 1024):
                loop.remove_reader(stdin)
                stopping.set()

        loop.add_reader(stdin, on_stdin)


def _load(settings: Settings) -> tuple[Model, Tools]:
    """Import and load all that is slow and heavy; seconds to minutes, on the model thread."""
    from hidream.model.pipeline import generate
    from hidream.safety.image import ImageChecker
    from hidream.worker.loading import load_configured

    model = load_configured(Variant.DEV, settings)
    checker = ImageChecker(settings.safety.nsfw_threshold)
    return model, Tools(functools.partial(generate, model), checker.flagged, settings.outputs_dir)
