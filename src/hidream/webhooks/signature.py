"""The signature of a webhook, by which a receiver knows that it comes from here, is fresh and was not changed.

    webhook-id         the same for every attempt of a delivery; receivers remember it and pass over what they had
    webhook-timestamp  when this attempt was made, in Unix seconds; receivers refuse what is older than 300 s
    webhook-signature  v3,<hex>: HMAC-SHA256 of `{id}.{timestamp}.{body}`
    webhook-signature-next  the same with the secret that is to follow, while secrets are rotated

There is one signature in a header, although Standard Webhooks would have both in one with a space between: receivers of
WaveSpeed's webhooks compare all that follows `v3,` (as errogaht/wavespeed-ai-bundle's WebhookVerifier does), and would
refuse both.

The key is the text of the secret without its `whsec_`, as ASCII: it is not decoded, although it looks like hex.
Source: WaveSpeed's documentation, page "verify-webhooks". Its printed examples do not verify; that of docs/WEBHOOKS.md
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

_SECRET_BYTES = 32  # as many as the hash has: more would not make it harder to guess
_UNIX_S = re.compile(r"[1-9][0-9]{0,11}")  # one way of writing each number


def new_secret() -> str:
    """Make a secret of 256 random bits."""
    return PREFIX + secrets.token_hex(_SECRET_BYTES)


def sign(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """Compute the header `webhook-signature`; without `whsec_` the secret is taken as it is."""
    key = secret.removeprefix(PREFIX).encode()
    assert key, "whoever knows that there is no secret could sign"
    message = f"{message_id}.{timestamp_s}.".encode() + body
    return f"{VERSION},{hmac.new(key, message, hashlib.sha256).hexdigest()}"


def headers(secret: str, message_id: str, timestamp_s: int, body: bytes, next_secret: str = "") -> dict[str, str]:
    """Give the three headers that go with a body, or four while `next_secret` is to follow."""
    found = {
        ID: message_id,
        TIMESTAMP: str(timestamp_s),
        SIGNATURE: sign(secret, message_id, timestamp_s, body),
    }
    return found | ({NEXT: sign(next_secret, message_id, timestamp_s, body)} if next_secret else {})


def verify(secret: str, received: Mapping[str, str], body: bytes, now_s: float) -> bool:
    """Tell whether a body was signed with the secret, and lately.

    `received` are the headers, found by their names in lower case; `body` is what came, byte for byte. How long this
    takes says nothing about the signature that would have been right.
    """
    message_id, timestamp = received.get(ID, ""), received.get(TIMESTAMP, "")
    if not _UNIX_S.fullmatch(timestamp) or abs(now_s - int(timestamp)) > TOLERANCE_S:
        return False
    expected = sign(secret, message_id, int(timestamp), body).encode()
    same = [hmac.compare_digest(expected, received.get(name, "").encode()) for name in (SIGNATURE, NEXT)]
    return any(same)
