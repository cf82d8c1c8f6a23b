"""Waiting out a database or a place for files that is away: what was drawn is kept, and said when they are back.

Every call that goes through here can be repeated. One that was carried out although its answer was lost is carried out
again: files are replaced by themselves, and what is said of a task is fenced by its attempt.
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
"""Before the second try, the third, ..., and all further ones: a server that is started anew is found again at once,
one that is overloaded is left alone."""

logger = logging.getLogger(__name__)


async def retry_unavailable(
    call: Callable[[], Awaitable[T]], aborted: asyncio.Event, what: str, *, within_s: float = math.inf
) -> T:
    """Call until database and files are there; `what` names the call in the log.

    Raises Interrupted once `given_up` is set while they are away, and their own error after `within_s` seconds.
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
            raise Interrupted(f"given up while {what} could not be done")
