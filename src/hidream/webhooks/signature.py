"""The signature of a webhook: with it, a receiver verifies that the message comes from us, is recent and unchanged.

    webhook-id         the same for every attempt of a delivery; receivers use it to skip duplicates
    webhook-timestamp  the time of this attempt in Unix seconds; receivers refuse what is older than 300 s
    webhook-signature  v3,<hex>: HMAC-SHA256 of `{id}.{timestamp}.{body}`
    webhook-signature-next  the same with the next secret, during a rotation

Each header contains one signature. Standard Webhooks would put both into one header with a space between them, but
receivers of WaveSpeed's webhooks compare everything after `v3,` (as errogaht/wavespeed-ai-bundle's WebhookVerifier
does), and would refuse both.

The HMAC key is the text of the secret without its `whsec_`, as ASCII. It is not decoded, although it looks like hex.
Source: WaveSpeed's documentation, page "verify-webhooks". The examples there do not verify; the one in docs/WEBHOOKS.md
does.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping

PREFIX = "whsec_"
VERSION = "v3"
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
NEXT = "webhook-signature-next"

TOLERANCE_S = 300
"""How far a timestamp may lie from the receiver's clock, in both directions (page "verify-webhooks")."""

_SECRET_BYTES = 32  # as many as the hash has; more would add no security
_UNIX_S = re.compile(r"[1-9][0-9]{0,11}")  # one notation for each number


def new_secret() -> str:
    """Make a secret of 256 random bits."""
    return PREFIX + secrets.token_hex(_SECRET_BYTES)


def sign(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """Compute the header `webhook-signature`; a secret without `whsec_` is used as it is."""
    key = secret.removeprefix(PREFIX).encode()
    assert key, "with an empty secret, anybody could sign"
    message = f"{message_id}.{timestamp_s}.".encode() + body
    return f"{VERSION},{hmac.new(key, message, hashlib.sha256).hexdigest()}"


def headers(secret: str, message_id: str, timestamp_s: int, body: bytes, next_secret: str = "") -> dict[str, str]:
    """Return the three headers of a body, or four if there is a `next_secret`."""
    found = {
        ID: message_id,
        TIMESTAMP: str(timestamp_s),
        SIGNATURE: sign(secret, message_id, timestamp_s, body),
    }
    return found | ({NEXT: sign(next_secret, message_id, timestamp_s, body)} if next_secret else {})


def verify(secret: str, received: Mapping[str, str], body: bytes, now_s: float) -> bool:
    """Whether a body was signed with the secret, at most TOLERANCE_S ago.

    `received` has the headers by their names in lower case; `body` is the body, byte for byte as received. The
    comparison takes constant time.
    """
    message_id, timestamp = received.get(ID, ""), received.get(TIMESTAMP, "")
    if not _UNIX_S.fullmatch(timestamp) or abs(now_s - int(timestamp)) > TOLERANCE_S:
        return False
    expected = sign(secret, message_id, int(timestamp), body).encode()
    same = [hmac.compare_digest(expected, received.get(name, "").encode()) for name in (SIGNATURE, NEXT)]
    return any(same)
