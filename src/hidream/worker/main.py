"""A worker process from its start to its end: load the model, work, and leave when told to.

It is told by SIGTERM or SIGINT, or, when a parent holds the other end of its standard input, by that parent's
end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from hidream.errors import ConfigurationError, Interrupted
from hidream.settings import Engine as EngineSettings
from hidream.settings import Settings
from hidream.store.database import Database
from hidream.store.workers import Worker, worker_id
from hidream.types import MODELS, Mode, Variant
from hidream.worker.bridge import Bridge
from hidream.worker.loop import Loop, Tools

if TYPE_CHECKING:
    from hidream.engine.loop import Engine, Options
    from hidream.model.loading import Model

logger = logging.getLogger(__name__)


def run(settings: Settings, with_parent: bool) -> int:
    """Work until told to stop.

    The exit status is 0, 1 if the engine has failed so often that a new process has to take over, or that of
    ConfigurationError if a start is hopeless.
    """
    try:
        bridge = asyncio.run(_run(settings, with_parent))
    except ConfigurationError as error:
        logger.error("worker_cannot_start error=%s", error.message)
        return error.exit_status
    if bridge.broken:
        logger.error("worker_broken error=the engine failed several times in a row; the log says above how")
    status = int(bridge.broken)
    if bridge.busy:
        logging.shutdown()
        os._exit(status)  # the model thread is inside a call that nothing can interrupt; nobody waits for its outcome
    return status


async def _run(settings: Settings, with_parent: bool) -> Bridge:
    """Return the bridge as it is at the end: closed, or still busy."""
    stopping = asyncio.Event()
    _listen(stopping, with_parent)
    bridge = Bridge()
    async with Database.open(settings.database_url) as database:
        try:
            model, engine, tools = await bridge.run(lambda: _load(settings), stopping)
        except Interrupted:
            return bridge
        bridge.drive(engine)
        worker = Worker(worker_id(os.getpid()), list(MODELS), model.version)
        await Loop(database, bridge, worker, tools, settings.worker).run(stopping)
    if not bridge.busy:
        await bridge.close()
    return bridge


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


def _load(settings: Settings) -> tuple[Model, Engine, Tools]:
    """Import and load all that is slow and heavy; seconds to minutes, on the model thread."""
    from hidream.engine.loop import Engine
    from hidream.safety.image import ImageChecker
    from hidream.worker.loading import load_configured

    model = load_configured(Variant.DEV, settings)
    checker = ImageChecker(settings.safety.nsfw_threshold)
    engine = Engine(model, _options(settings.engine))
    logger.info(
        "engine_ready tokens=%d memory_gb=%.1f policy=%s",
        engine.limits.tokens,
        engine.limits.memory_bytes / 1e9,
        settings.engine.policy,
    )
    versions = {mode: model.version_of(mode) for mode in Mode}
    return model, engine, Tools(checker.flagged, settings.outputs_dir, versions)


def _options(settings: EngineSettings) -> Options:
    """Say to the engine what is set."""
    from hidream.engine.loop import Options
    from hidream.engine.request import Policy

    return Options(
        policy=Policy(settings.policy),
        tokens=settings.tokens_per_step,
        memory_bytes=round(settings.memory_gb * 1e9),
        requests=settings.requests_max or None,
        ageing=settings.ageing,
    )
