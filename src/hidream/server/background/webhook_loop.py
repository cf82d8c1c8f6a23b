"""The webhook loop: it claims deliveries that are due, sends each, and records the result.

Each delivery runs in its own asyncio task, so that a receiver that hangs does not delay others. The deliveries that run
at the same time are limited per key (`store/outbox`) and per host (PER_HOST_MAX). If an API process dies, its claims
expire, and another process sends the deliveries again, under the same ids.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from hidream.errors import DatabaseUnavailable, HiDreamError, ObjectStoreUnavailable
from hidream.server.parameters import V3
from hidream.server.responses import input_data, prediction_data
from hidream.server.service import Service
from hidream.store import history, outbox, webhook_secrets
from hidream.store.outbox import Delivery, DeliveryState
from hidream.store.prediction import Prediction
from hidream.webhooks import delivery as sending
from hidream.webhooks.delivery import Attempt, WebhookClient
from hidream.webhooks.signature import new_secret

LEASE_S = 60.0
"""How long a claim lasts: enough for an attempt (`webhooks/delivery.TOTAL_S`, 10 s) and its few statements."""
POLL_S = 30.0
"""The interval of checks without a commit in between: they find expired claims of other processes."""
MIN_INTERVAL_S = 0.1
"""The least interval of checks: there may be hundreds of commits a second, and a tenth of a second is no delay."""
RETRY_S = 1.0
"""The pause before the next check when the database was unavailable."""
PER_HOST_MAX = 16
"""Deliveries to one host at a time, shared between keys so that one key alone gets 8. Others to the same host are
postponed, so that those to other hosts are sent meanwhile."""
POSTPONE_S = 10.0
"""How long they are postponed: as long as an attempt to a receiver that hangs takes."""
UNSENT = "the prediction cannot be read now"

logger = logging.getLogger(__name__)


class WebhookLoop:
    """The deliveries of one process."""

    def __init__(self, service: Service, client: WebhookClient | None = None) -> None:
        self._service = service
        self._client = client or WebhookClient(allowed=service.allowlist, tls=service.tls)
        self._running: dict[asyncio.Task[None], Delivery] = {}
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Deliver until this process stops, then finish the deliveries that have started."""
        changes = self._service.database.changes
        while not changes.stopped:
            seen = changes.version()
            self._ended.clear()
            try:
                wait_s = await self._begin_due()
            except DatabaseUnavailable as error:
                logger.warning("webhooks_wait error=%s", error.message)
                wait_s = RETRY_S
            await asyncio.sleep(MIN_INTERVAL_S)
            await self._wait_for_work(seen, wait_s)
        if self._running:
            await asyncio.wait(self._running)

    async def _begin_due(self) -> float:
        """Start due deliveries in the free slots; return in how many seconds the next one is due."""
        database, free_slots = self._service.database, self._free_slots()
        if free_slots <= 0:
            return POLL_S
        per_host = Counter(_host(delivery) for delivery in self._running.values())
        per_key_and_host = Counter((_host(delivery), delivery.key_id) for delivery in self._running.values())
        postponed = []
        for claimed in await outbox.claim(database, free_slots, LEASE_S, self._running_per_key()):
            host = _host(claimed)
            if per_key_and_host[host, claimed.key_id] >= PER_HOST_MAX - per_host[host]:
                postponed.append(claimed)
                continue
            per_host[host] += 1
            per_key_and_host[host, claimed.key_id] += 1
            task = asyncio.create_task(self._deliver(claimed))
            self._running[task] = claimed
            task.add_done_callback(self._finished)
        await outbox.postpone(database, postponed, POSTPONE_S)
        due_ms = await outbox.next_due_ms(database, self._free_slots(), self._running_per_key())
        return POLL_S if due_ms is None else min(POLL_S, max(0.0, (due_ms - database.now_ms()) / 1000))

    def _free_slots(self) -> int:
        return self._service.settings.webhooks.together_max - len(self._running)

    def _running_per_key(self) -> Counter[str]:
        """Count the running deliveries of each key."""
        return Counter(delivery.key_id for delivery in self._running.values())

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._ended.set()

    async def _wait_for_work(self, seen: int, wait_s: float) -> None:
        """Wait until a delivery has ended. If slots are free, also wait for a commit, or for `wait_s` seconds."""
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(self._ended.wait())]
        if self._free_slots() > 0:
            waits.append(asyncio.create_task(self._service.database.changes.wait_after(seen, wait_s, MIN_INTERVAL_S)))
        await asyncio.wait(waits, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def _deliver(self, claimed: Delivery) -> None:
        try:
            attempt = await self._attempt(claimed)
        except Exception as error:  # an edge: an error in one delivery must not stop the others
            logger.exception("webhook_raised id=%s delivery=%s", claimed.prediction_id, claimed.id)
            attempt = Attempt(None, f"the attempt failed: {type(error).__name__}", 0)
        if attempt is None:
            await self._write(claimed, DeliveryState.GIVEN_UP, None, "the prediction was deleted")
            return
        if attempt.delivered:
            await self._settle(claimed, attempt, DeliveryState.DELIVERED, 0)
        elif claimed.attempts >= sending.ATTEMPTS_MAX:
            await self._settle(claimed, attempt, DeliveryState.GIVEN_UP, 0)
        else:
            await self._settle(
                claimed, attempt, DeliveryState.WAITING, sending.retry_delay_s(claimed.attempts, claimed.id, attempt)
            )

    async def _attempt(self, claimed: Delivery) -> Attempt | None:
        """Send a delivery once; None if the prediction was deleted."""
        database = self._service.database
        try:
            prediction = await history.get_for_webhook(database, claimed.prediction_id)
            if prediction is None:
                return None
            signed = await webhook_secrets.get(database, prediction.key_id, new_secret())
            body = await self._body(prediction)
        except (DatabaseUnavailable, ObjectStoreUnavailable) as error:
            return Attempt(None, f"{UNSENT}: {error.message}", 0)
        message = sending.WebhookMessage(claimed.id, claimed.url, signed.secret, body, signed.next)
        return await sending.deliver(self._client, message)

    async def _body(self, prediction: Prediction) -> bytes:
        """Serialise the prediction as a result without the envelope, plus the accepted request as `input`."""
        url = prediction.base_url
        data = await prediction_data(prediction, V3, url, self._service.outputs, inline=False)
        return json.dumps(data | {"input": input_data(prediction.input, url)}, ensure_ascii=False).encode()

    async def _settle(self, claimed: Delivery, attempt: Attempt, state: DeliveryState, again_in_s: float) -> None:
        result = {
            DeliveryState.DELIVERED: "delivered",
            DeliveryState.GIVEN_UP: "given_up",
            DeliveryState.WAITING: "failed",
        }[state]
        self._service.metrics.webhook(result, attempt.duration_ms / 1000)
        line = "webhook_sent id=%s delivery=%s attempt=%d result=%s status=%s ms=%d"
        values = (claimed.prediction_id, claimed.id, claimed.attempts, result, attempt.status, attempt.duration_ms)
        logger.info(line, *values)
        await self._write(claimed, state, attempt.status, attempt.error, again_in_s)

    async def _write(
        self, claimed: Delivery, state: DeliveryState, status: int | None, error: str, again_in_s: float = 0
    ) -> None:
        """Record the result, and retry for as long as the claim lasts: without a record it would be sent again."""
        until = time.monotonic() + LEASE_S
        while True:
            try:
                await outbox.record_attempt(self._service.database, claimed, state, status, error, again_in_s)
            except HiDreamError as failure:
                if time.monotonic() >= until or self._service.database.changes.stopped:
                    logger.warning("webhook_unsettled id=%s error=%s", claimed.prediction_id, failure.message)
                    return
                await asyncio.sleep(RETRY_S)
            else:
                return


def _host(delivery: Delivery) -> str:
    return urlsplit(delivery.url).netloc.lower()
