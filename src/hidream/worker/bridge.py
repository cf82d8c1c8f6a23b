"""The one way from the event loop to the thread that may touch the model, and back.

One thread, because a model computes one thing at a time; off the loop, because leases have to be renewed
meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from hidream.errors import Interrupted

T = TypeVar("T")


class Bridge:
    """The model thread, as seen from the loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._latest: asyncio.Future[Any] | None = None

    @property
    def busy(self) -> bool:
        """Whether the thread still works, be it on something that was given up."""
        return self._latest is not None and not self._latest.done()

    async def run(self, function: Callable[[], T], given_up: asyncio.Event) -> T:
        """Run `function` on the thread and return what it returns or raises.

        Raises Interrupted as soon as `given_up` is set. The function itself is not stopped by that: one that
        takes long should look at `given_up.is_set()` now and then, for the next one waits until it ends.
        """
        work: asyncio.Future[T] = asyncio.get_running_loop().run_in_executor(self._thread, function)
        self._latest = work
        leaving = asyncio.create_task(given_up.wait())
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if work.done():
            return work.result()
        work.add_done_callback(_outcome_is_of_no_interest)
        raise Interrupted("the work was given up before it was finished")


def _outcome_is_of_no_interest(work: asyncio.Future[T]) -> None:
    if not work.cancelled():
        work.exception()  # asyncio reports exceptions that nobody has looked at
