"""What the receiver of a webhook does: `verify` it, and read it. Standard library only; no server is needed for it."""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from hidream.errors import InvalidInput, InvalidSignature
from hidream.webhooks.signature import ID, NEXT, PREFIX, SIGNATURE, TIMESTAMP, sign

TOLERANCE_S = 300
"""How far a timestamp may lie from the receiver's clock, in both directions (page "verify-webhooks")."""

_UNIX_S = re.compile(r"[1-9][0-9]{0,11}", re.ASCII)  # one notation for each number


def verify(headers: Mapping[str, str], body: bytes | str, secret: str, now_s: float | None = None) -> dict[str, Any]:
    """Verify a webhook, and return its message: the task as `GET /predictions/{id}` describes it, and its `input`.

    `headers` are those of the request, in any case; `body` is its body exactly as received. During a rotation, either
    secret verifies. `now_s` is Unix time, and now by default. Store the header `webhook-id`, and skip what you have.

    Raises InvalidSignature if the message was not signed with the secret, was changed, or is more than TOLERANCE_S old;
    answer it with its `http_status`, 401. Raises InvalidInput without a secret, and for a body that is no JSON object.
    """
    if not isinstance(body, bytes | bytearray | memoryview | str):
        raise InvalidInput(f"body is {body!r:.100}; accepted: the bytes exactly as received, not parsed", field="body")
    data = body.encode(errors="surrogatepass") if isinstance(body, str) else bytes(body)
    check(headers, data, secret, time.time() if now_s is None else now_s)
    return _message(data)


def check(headers: Mapping[str, str], body: bytes, secret: str, now_s: float) -> None:
    """Verify any bytes. Raises InvalidSignature, or InvalidInput without a secret."""
    if not isinstance(secret, str) or not secret.removeprefix(PREFIX) or not secret.isascii():
        raise InvalidInput("secret is empty, or no ASCII; accepted: the secret of GET /webhook/secret", field="secret")
    found = {str(name).lower(): str(value) for name, value in headers.items()}
    if absent := [name for name in (ID, TIMESTAMP) if not found.get(name, "").isascii() or not found.get(name)]:
        raise InvalidSignature(f"the webhook has no header {absent[0]}, or one that is not ASCII")
    timestamp = found[TIMESTAMP]
    if not _UNIX_S.fullmatch(timestamp) or not abs(now_s - int(timestamp)) <= TOLERANCE_S:  # NaN is no time
        raise InvalidSignature(f"{TIMESTAMP} is {timestamp!r:.40}; accepted: {TOLERANCE_S} s around this clock")
    expected = sign(secret, found[ID], int(timestamp), body).encode()
    same = [hmac.compare_digest(expected, found.get(name, "").encode(errors="replace")) for name in (SIGNATURE, NEXT)]
    if not any(same):
        raise InvalidSignature("the webhook was not signed with this secret, or its body was changed")


def _message(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise InvalidInput(f"the body is {data!r:.100}; accepted: a JSON object", field="body")
    return message
