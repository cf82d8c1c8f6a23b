"""The signature of a webhook. It shows a receiver (`received`) that a message is ours, recent and unchanged.

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
import secrets

PREFIX = "whsec_"
VERSION = "v3"
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
NEXT = "webhook-signature-next"

_SECRET_BYTES = 32  # as many as the hash has; more would add no security


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
