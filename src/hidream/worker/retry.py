"""Retries while the database or the object store is unavailable: finished images are kept and reported later.

Every call that is retried here can be repeated. A call whose response was lost runs again: a file is replaced by the
same file, and reports about a task are fenced by its attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hidream.errors import DatabaseUnavailable, Interrupted, ObjectStoreUnavailable

T = TypeVar("T")

PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses before the second try, the third, ..., and all later ones: a restarted server is found quickly, and an
overloaded one is left alone."""

logger = logging.getLogger(__name__)


async def retry_unavailable(
    call: Callable[[], Awaitable[T]], aborted: asyncio.Event, what: str, *, within_s: float = math.inf
) -> T:
    """Call until the database and the object store are available; `what` names the call in the log.

    Raises Interrupted if `aborted` is set while they are unavailable, and their own error after `within_s` seconds.
    """
    clock = asyncio.get_running_loop().time
    deadline, tries = clock() + within_s, 0
    while True:
        try:
            return await call()
        except (DatabaseUnavailable, ObjectStoreUnavailable) as error:
            pause_s = PAUSES_S[min(tries, len(PAUSES_S) - 1)]
            if clock() + pause_s > deadline:
                raise
            tries += 1
            logger.warning("unavailable what=%s tries=%d pause_s=%g error=%s", what, tries, pause_s, error.message)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await aborted.wait()
        if aborted.is_set():
            raise Interrupted(f"aborted before {what} succeeded")
