"""Python imports this at its start: a worker then stops within a write transaction once the named file is there."""

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


if "STOP_ONCE_THERE_IS" in os.environ and any("worker" in word for word in sys.orig_argv):
    plant(Path(os.environ["STOP_ONCE_THERE_IS"]))
