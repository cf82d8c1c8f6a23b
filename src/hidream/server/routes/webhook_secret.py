"""A key's webhook secret: read it, and rotate it without failed deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from hidream.parameter import Integer
from hidream.server import unused
from hidream.server.bodies.body import read_short_json
from hidream.server.responses import success, timestamp
from hidream.server.service import ReadKey, Route, Version, service_of
from hidream.store import webhook_secrets
from hidream.store.webhook_secrets import OVERLAP_HOURS, OVERLAP_MAX_HOURS, WebhookSecrets
from hidream.webhooks import signature

HOUR_MS = 3_600_000


async def look(request: Request, api: Version, key: ReadKey) -> Response:
    """GET /api/{v2,v3}/webhook/secret: the secret that signs this key's webhooks; created on the first request."""
    return success(_data(await webhook_secrets.get(service_of(request).database, key.id, signature.new_secret())))


async def rotate(request: Request, api: Version, key: ReadKey) -> Response:
    """POST /api/{v2,v3}/webhook/secret/rotate: create the next secret; after the overlap, only that one signs."""
    service = service_of(request)
    has_no_body = request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
    body = {} if has_no_body else await read_short_json(request)
    given = body.get("overlap_hours")
    hours = OVERLAP_HOURS if given is None else Integer(0, OVERLAP_MAX_HOURS).read("overlap_hours", given)
    unknown_names = unused.unknown(body, ("overlap_hours",), "this route")
    new_secret, actor = signature.new_secret(), f"key:{key.id}"
    rotated = await webhook_secrets.rotate(service.database, key.id, new_secret, hours * HOUR_MS, actor=actor)
    return success(unused.with_warnings(_data(rotated), unknown_names))


async def retire(request: Request, api: Version, key: ReadKey) -> Response:
    """POST /api/{v2,v3}/webhook/secret/retire: end the current rotation now; without one, nothing changes."""
    database = service_of(request).database
    await webhook_secrets.retire(database, key.id, actor=f"key:{key.id}")
    return success(_data(await webhook_secrets.get(database, key.id, signature.new_secret())))


def _data(secrets: WebhookSecrets) -> dict[str, Any]:
    """Describe the current secret, and during a rotation also its end and the next secret."""
    if not secrets.next:
        return {"secret": secrets.secret}
    return {"secret": secrets.secret, "secret_until": timestamp(secrets.until_ms), "next_secret": secrets.next}


ROUTES: Sequence[Route] = (
    ("GET", "/api/{api}/webhook/secret", look),
    ("POST", "/api/{api}/webhook/secret/rotate", rotate),
    ("POST", "/api/{api}/webhook/secret/retire", retire),
)
