"""One generation on a server: submitted, followed by its events, and cancelled if ComfyUI stops waiting for it.

ComfyUI stops an asynchronous node in two ways. An interruption sets a flag, which a node has to look at. If another
node fails or is interrupted, ComfyUI cancels all tasks of its event loop, once. In both cases, and in every other case
in which nobody will fetch the images, the task on the server is cancelled before the error leaves this module.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from hidream.client.async_client import AsyncClient, AsyncTask
    from hidream.client.events import Event
    from hidream.client.prediction import Result

    from .keys import Credentials

logger = logging.getLogger(__name__)

LOOK_S = 0.1
"""How often the flag of an interruption is looked at."""
CANCEL_S = 5.0
"""How long a server may take to cancel a task before ComfyUI goes on without an answer."""


class Interruption(Exception):
    """ComfyUI's user has stopped the prompt."""


async def generate(
    server: Credentials,
    request: Mapping[str, Any],
    timeout_s: float,
    show: Callable[[Event], None],
    interrupted: Callable[[], bool],
) -> Result:
    """Generate images. `request` has the prompt and keywords of `hidream.AsyncClient`; `show` gets each event.

    Raises Interruption when `interrupted()` says so, what `show` raises, and the errors of the client.
    """
    from hidream.client.async_client import AsyncClient

    async with AsyncClient(server.url, server.key, timeout=timeout_s) as client:
        generation = _Generation(client, request)
        work = asyncio.ensure_future(generation.run(show))
        try:
            while not (await asyncio.wait({work}, timeout=LOOK_S))[0]:
                if interrupted():
                    raise Interruption
            return work.result()
        except BaseException:
            await _ended(work)
            await generation.stop(keyed=not _hosted(server.url))
            raise


async def _ended(work: asyncio.Future[Result]) -> None:
    """Cancel what follows a task, and wait until its connections are closed."""
    work.cancel()
    await asyncio.wait({work}, timeout=CANCEL_S)
    if work.done() and not work.cancelled():
        work.exception()  # it was raised already, or an interruption came first


class _Generation:
    """A task, from before it is submitted to its end."""

    def __init__(self, client: AsyncClient, request: Mapping[str, Any]) -> None:
        self._client = client
        self._request = {**request, "idempotency_key": uuid.uuid4().hex}
        self._submission: asyncio.Future[AsyncTask] | None = None
        self._ended = False

    async def run(self, show: Callable[[Event], None]) -> Result:
        """Submit it, show its events, and download its images."""
        self._submission = asyncio.ensure_future(self._client.submit(**self._request))
        # Shielded: a submission that is interrupted halfway would leave a task of which nobody knows the id.
        task = await asyncio.shield(self._submission)
        async with aclosing(task.events()) as events:
            async for event in events:
                show(event)
        self._ended = True
        return await task.result()

    async def stop(self, *, keyed: bool) -> None:
        """Cancel the task unless it has ended. What goes wrong is logged; it must not hide the error that led here."""
        from hidream.errors import HiDreamError

        if self._ended or self._submission is None:
            return
        try:
            async with asyncio.timeout(CANCEL_S):
                task = await self._submitted(keyed=keyed)
                if task is not None:
                    await task.cancel()
        except TimeoutError:
            logger.warning("hidream: the server has not cancelled a task within %g s", CANCEL_S)
        except HiDreamError as error:
            logger.warning("hidream: a task was not cancelled: %s", error.message)

    async def _submitted(self, *, keyed: bool) -> AsyncTask | None:
        """Wait for the end of the submission; None if there is no task.

        ComfyUI may have cancelled the submission itself, so that its fate is unknown. A server that knows
        Idempotency-Keys is then asked again, and answers with the same task.
        """
        assert self._submission is not None, "it was submitted"
        (done,), _ = await asyncio.wait({self._submission})
        if not done.cancelled():
            return None if done.exception() else done.result()
        if not keyed:
            logger.warning("hidream: a submission was stopped halfway; the server may have a task of it")
            return None
        return await self._client.submit(**self._request)


def _hosted(url: str) -> bool:
    from hidream.client.connection import HOSTED

    return urlsplit(url).hostname == HOSTED
