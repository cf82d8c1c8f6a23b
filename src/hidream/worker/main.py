"""The worker process: load the models, process tasks, and stop when told to.

SIGTERM or SIGINT stops it. If a parent holds the other end of its standard input, the end of the parent stops it too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hidream.configured_stores import open_configured_store
from hidream.errors import ConfigurationError, DatabaseGone, Interrupted
from hidream.outputs.object_store import Namespace
from hidream.settings.tables import Settings
from hidream.store.database import Database
from hidream.store.workers import Worker, worker_id
from hidream.types import MODELS, Mode, Variant
from hidream.worker import heartbeat
from hidream.worker.bridge import Bridge
from hidream.worker.garbage import gc_frozen
from hidream.worker.generation import Tools
from hidream.worker.loop import WorkerLoop
from hidream.worker.retry import retry_unavailable

if TYPE_CHECKING:
    from hidream.engine.loop import Engine
    from hidream.model.model import Model
    from hidream.safety.image import ImageChecker

NAMES = {variant: name for name, variant in MODELS.items()}
"""The name of each variant in the API."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The models, their engines and the image classifier."""

    models: Mapping[Variant, Model]
    engines: Mapping[Variant, Engine]
    checker: ImageChecker


def run(settings: Settings, with_parent: bool) -> int:
    """Run until told to stop, and return the exit status.

    It is 0 normally, 1 if an engine has failed so often that a new process must take over, that of ConfigurationError
    if another start would not help, or that of DatabaseGone.
    """
    try:
        bridge, database_gone = asyncio.run(_run(settings, with_parent))
    except ConfigurationError as error:
        logger.error("worker_cannot_start error=%s", error.message)
        return error.exit_status
    if bridge.broken:
        logger.error("worker_broken error=the engine failed several times in a row; see the log above")
    status = DatabaseGone.exit_status if database_gone else int(bridge.broken)
    if bridge.busy:
        logging.shutdown()
        os._exit(status)  # the model thread is in a call that cannot be interrupted; its result is not needed
    return status


async def _run(settings: Settings, with_parent: bool) -> tuple[Bridge, bool]:
    """Run until told to stop; return the bridge, closed or still busy, and whether the database is gone."""
    stopping, loaded_all = asyncio.Event(), asyncio.Event()
    heartbeats = asyncio.create_task(heartbeat.send_heartbeats(0 if with_parent else None, loaded_all))
    _stop_on_signal(stopping, with_parent)
    bridge = Bridge()
    outputs, uploads = (
        open_configured_store(settings, namespace) for namespace in (Namespace.OUTPUTS, Namespace.UPLOADS)
    )
    async with Database.open(settings.database_url) as database:
        watching = asyncio.create_task(stop_when_gone(database, stopping))
        try:
            await retry_unavailable(outputs.check, stopping, "check")
            loaded = await bridge.run(lambda: _load(settings), stopping)
        except Interrupted:
            return bridge, database.gone.is_set()
        loaded_all.set()
        bridge.set_engines({NAMES[variant]: engine for variant, engine in loaded.engines.items()})
        versions = {NAMES[variant]: _versions(model) for variant, model in loaded.models.items()}
        tools = Tools(loaded.checker.flagged, outputs, uploads, versions)
        worker = Worker(worker_id(os.getpid()), list(versions), ", ".join(_exact(versions)))
        with closing(tools.decoders):
            await WorkerLoop(database, bridge, worker, tools, settings.worker).run(stopping)
        watching.cancel()
    if not bridge.busy:
        await bridge.close()
    heartbeats.cancel()
    return bridge, database.gone.is_set()


async def stop_when_gone(database: Database, stopping: asyncio.Event) -> None:
    """Set `stopping` when the database file was replaced or deleted: no outcome can be recorded any more."""
    await database.gone.wait()
    stopping.set()


def _stop_on_signal(stopping: asyncio.Event, with_parent: bool) -> None:
    """Set `stopping` on SIGTERM, SIGINT, or the end of the parent."""
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


def _load(settings: Settings) -> Loaded:
    """Import torch and load the models, on the model thread; takes seconds to minutes."""
    with gc_frozen():
        from hidream.safety.image import ImageChecker
        from hidream.worker.loading import engines_of, load_served

        models = load_served(settings)
        checker = ImageChecker(settings.safety.nsfw_threshold)
    engines = engines_of(models, settings.engine)
    for variant, engine in engines.items():
        logger.info(
            "engine_ready variant=%s tokens=%d memory_gb=%.1f policy=%s",
            *(variant, engine.limits.tokens, engine.limits.memory_bytes / 1e9, settings.engine.policy),
        )
    return Loaded(models, engines, checker)


def _versions(model: Model) -> dict[Mode, str]:
    return {mode: model.version_of(mode) for mode in Mode}


def _exact(versions: Mapping[str, Mapping[Mode, str]]) -> list[str]:
    return [modes[Mode.EXACT] for modes in versions.values()]
