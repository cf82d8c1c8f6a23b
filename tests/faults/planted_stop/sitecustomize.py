"""Python imports this at its start. A worker then stops within a write transaction once the named file exists.

With `WITHOUT_A_MODEL`, `hidream worker` loads what the fast worker has in place of a model: all else of it is real.
"""

import os
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path


def plant(flag):
    from hidream.store.database import Database

    real = Database.write

    @asynccontextmanager
    async def write(self, **how):
        async with real(self, **how) as connection:
            yield connection
            if flag.exists():
                flag.unlink()
                os.kill(os.getpid(), signal.SIGSTOP)

    Database.write = write


def paint():
    from fakes import NoChecker, NoModel
    from hidream.types import Variant
    from hidream.worker import main
    from soak.fast_worker import FastPainter

    def load(_settings):
        painter = FastPainter()
        painter.go_on.set()
        return main.Loaded({Variant.DEV: NoModel()}, {Variant.DEV: painter}, NoChecker())

    main._load = load


if "STOP_ONCE_THERE_IS" in os.environ and any("worker" in word for word in sys.orig_argv):
    plant(Path(os.environ["STOP_ONCE_THERE_IS"]))
    if "WITHOUT_A_MODEL" in os.environ:
        paint()
